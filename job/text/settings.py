"""Definitions of single settings, and checks of their values."""

import re
from collections.abc import Callable
from typing import TypedDict, TypeVar, Unpack

from pydantic import Field
from pydantic.fields import FieldInfo

Value = TypeVar("Value")


class _Limits(TypedDict, total=False):
    ge: float
    gt: float
    le: float
    lt: float
    min_length: int


def how(default: Value, description: str, **limits: Unpack[_Limits]) -> Value:
    """Define a setting that changes how the work is done but not its result. It makes no finished stage stale."""
    return Field(default, description=description, json_schema_extra={"how": True}, **limits)


def what(default: Value, description: str, **limits: Unpack[_Limits]) -> Value:
    """Define a setting that changes the result. Stages that depend on it become stale."""
    return Field(default, description=description, **limits)


def is_how(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("how"))


def ordered_pair(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    if pair is not None and not 0 <= pair[0] <= pair[1]:
        raise ValueError("give two numbers, 0 or more, the smaller one first")
    return pair


def zoom(value: float | tuple[float, float]) -> float | tuple[float, float]:
    low, high = (1 - value, 1 + value) if isinstance(value, float) else value
    if not 0 < low <= high:
        raise ValueError("give z from 0 to below 1 (means 1 - z to 1 + z), or two numbers above 0, the smaller one first")
    return value


def shift(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
    if value == () or (not isinstance(value, tuple) and value < 0):
        raise ValueError("give a number, 0 or more (2.0 means -2 to 2; 2 means -1, 0 or 1), or a list of shifts")
    return value


def unfreeze(value: float | str) -> float | str:
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("a share lies between 0 and 1; give none for 0 and all for 1")
    return value


def duration(value: object) -> object:
    """Return the seconds of a time such as 20m. Other values stay as they are."""
    given = re.fullmatch(r"(\d+(?:\.\d+)?) *(s|m|min|h)", value) if isinstance(value, str) else None
    return float(given[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[given[2]] if given else value


def pattern(group: str) -> Callable[[str | None], str | None]:
    """Return a check that a setting is a regular expression with a named group."""

    def check(pattern: str | None) -> str | None:
        try:
            if pattern is not None and group not in re.compile(pattern).groupindex:
                raise ValueError(f"a regular expression with a group called {group}, such as (?P<{group}>[^_]+)_")
        except re.error as error:
            raise ValueError(f"a regular expression ({error})") from None
        return pattern

    return check
