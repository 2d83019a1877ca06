"""Lists in files: one JSON object a line, with texts, numbers and the names of pictures beside the file."""

import json
from pathlib import Path


def read_lines(path: str | Path, texts: tuple[str, ...], files: tuple[str, ...], what: str) -> list[dict]:
    """The objects of a file, each with all fields of `texts`, and `files` that are there, relative to its folder.

    Raises ValueError naming the line that cannot be used, or that the file lists no `what`.
    """
    path, rows = Path(path), []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: an object is needed, in braces")
        for name in (*texts, *files):
            if not isinstance(row.get(name), str) or not row[name]:
                raise ValueError(f'{where}: "{name}" is missing or not a text')
        for name in files:
            if not (path.parent / row[name]).is_file():
                raise ValueError(f"{where}: there is no picture {row[name]!r} in {path.parent}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} lists no {what}")
    return rows
