"""Messages about settings: the values that are allowed, and the mistakes in the values that were given."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

_shown = reprlib.Repr()  # A wrong value may be very long or deeply nested.
_shown.maxstring = _shown.maxother = _shown.maxlong = 200


def allowed(field: FieldInfo) -> str:
    """Return the values that a setting accepts, in words."""
    return _in_words(field.annotation, list(field.metadata))


def explain(
    error: ValidationError, known: Mapping[str, FieldInfo], sections: Iterable[str], refused: Mapping[str, str]
) -> list[str]:
    """Return a line for each mistake, with the dotted name of its setting. `refused` explains unsupported settings."""
    lines: dict[str, str] = {}
    for detail in error.errors():
        dotted = _setting(detail["loc"], known)
        if dotted in refused:
            lines[dotted] = f"{dotted}: refused: {refused[dotted]}"
        elif detail["type"] == "extra_forbidden":
            close = difflib.get_close_matches(dotted, [*known, *sections], n=1, cutoff=0.5)
            lines[dotted] = f"{dotted}: there is no such setting" + (f"; did you mean {close[0]}?" if close else "")
        elif dotted in known:
            said = f" ({detail['msg'].removeprefix('Value error, ')})" if detail["type"] == "value_error" else ""
            lines.setdefault(
                dotted, f"{dotted}: got {_shown.repr(detail['input'])}; allowed: {allowed(known[dotted])}{said}"
            )
        else:
            lines[dotted] = f"{dotted}: got {_shown.repr(detail['input'])}; this is a section: set its keys instead"
    return list(lines.values())


def _setting(location: tuple[int | str, ...], known: Mapping[str, FieldInfo]) -> str:
    """Return the dotted name of the setting that contains pydantic's location."""
    parts = [str(part) for part in location]
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return ".".join(parts)


def _in_words(annotation: object, metadata: list[object]) -> str:
    origin = getattr(annotation, "__origin__", None)
    arguments = get_args(annotation)
    if origin is Annotated or hasattr(annotation, "__metadata__"):
        return _in_words(arguments[0], [*metadata, *(m for a in arguments[1:] for m in getattr(a, "metadata", [a]))])
    if origin is Literal:
        return " or ".join(str(a) for a in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list of {_in_words(arguments[0], [])}".replace("a number", "numbers")
        return f"[{', '.join(_in_words(a, []) for a in arguments)}]"
    if arguments:  # a union
        return " or ".join("left out" if a is type(None) else _in_words(a, metadata) for a in arguments)
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _limits(metadata)
    return "text"


def _limits(metadata: list[object]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{word} {getattr(m, name):,}" if isinstance(getattr(m, name), int) else f"{word} {getattr(m, name)}"
        for name, word in words.items()
        for m in metadata
        if getattr(m, name, None) is not None
    ]
    return (", " if limits else "") + " and ".join(limits)
