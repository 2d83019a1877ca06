"""python trainers/child.py MODULE …: a trainer, for Pythons that do not look for modules in the working folder."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

sys.path[:] = [str(HERE.parent), *(folder for folder in sys.path if folder != str(HERE))]
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
