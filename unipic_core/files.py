"""Files and folders that are written whole or not at all."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Where to write a file that becomes `path`, in place of the one that is there, when all went well.

    The name differs by process and thread, and does not end like `path`: no listing of models shows it.
    """
    partial = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` when all went well. FileExistsError: there is an `out` already."""
    if out.exists():
        raise FileExistsError(f"{out} exists already; a fresh model is never written over another one")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """Where to make a folder that takes the place of `out`, if there is one, when all went well."""
    partial = out.with_name(f".{out.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
