"""Sets up everything that the tests need and runs them. Arguments go to pytest: `python scripts/test.py -k kontext`."""

import sys

import environment


def main() -> int:
    arguments = sys.argv[1:]
    settings = {"COMFYUI_PATH": str(environment.python_packages())}
    if not any("not browser" in argument for argument in arguments):
        settings["UNIPIC_BROWSER"] = environment.browser()
    return environment.run_inside("-m pytest", arguments, **settings)


if __name__ == "__main__":
    sys.exit(main())
