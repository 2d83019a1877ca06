"""Imports put off until they are needed, so that a name costs only its own dependencies."""

from collections.abc import Callable
from importlib import import_module


def names_on_demand(package: str, modules: dict[str, str]) -> Callable:
    """A `__getattr__` for `package`: the names that it exports, each with the submodule that has it."""

    def __getattr__(name: str):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    return __getattr__


def call_on_demand(package: str, module: str, name: str) -> Callable:
    """Calls `name` of a submodule of `package`, which is imported at the call."""
    return lambda **arguments: getattr(import_module(f".{module}", package), name)(**arguments)
