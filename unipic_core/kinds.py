"""What configurations name by its kind."""

from collections.abc import Callable


def open_kind(noun: str, spec: dict | str, kinds: dict[str, Callable], label: str | None = None):
    """What `spec` describes: `{"kind": one of kinds, …its arguments}`, or a kind alone.

    ValueError: unknown kind or argument; the message calls the kind `label`, by default "`noun` kind".
    """
    arguments = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = arguments.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"{label or f'{noun} kind'} {kind!r} is unknown; use one of: {', '.join(kinds)}")
    try:
        return kinds[kind](**arguments)
    except TypeError as error:
        raise ValueError(f"{noun} {spec}: {error}") from None
