"""Sets everything up, starts a real ComfyUI and runs the demo workflows in it; the pictures go to demo_output/."""

import sys

import environment


def main() -> int:
    return environment.run_inside("scripts/run_demo.py", [str(environment.python_packages())])


if __name__ == "__main__":
    sys.exit(main())
