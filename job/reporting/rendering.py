"""Templates of the HTML pages and of the model card. A page is one file, without scripts, that loads nothing.

Its content security policy forbids both. Names of files and classes are untrusted text: Jinja escapes them, and invisible
characters and those that change the writing direction are written out.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePosixPath

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from job.reporting.figures import SERIES
from job.storage.files import in_units
from job.text.numbers import percent, points, seconds
from job.text.untrusted import escaped

HEAT_LEVELS = 20
_LONGEST_EXTENSION, _KEPT_WITH_EXTENSION = 6, 3


def rendered(template: str, **values: object) -> bytes:
    """Return the page that a template makes of these values, with the style of all pages."""
    style = templates().get_template("report.css.j2").render(heat_levels=HEAT_LEVELS, series=SERIES)
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    text = templates().get_template(template).render(values, style=style, style_hash=style_hash)
    return text.encode("utf-8", "backslashreplace")


@cache
def templates() -> Environment:
    """Return the templates of the page. Each is compiled once in a process."""
    environment = environment_with(escaped, autoescape=True)
    environment.filters |= {"points": points, "seconds": seconds, "when": _when, "short": _short, "breakable": breakable}
    environment.filters["setting"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


def environment_with(escape: Callable[[str], str], *, autoescape: bool) -> Environment:
    """Return templates that escape all text that is inserted. Markup comes from a template and is not changed."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,  # noqa: S701  # It is for HTML only.
        finalize=lambda value: escape(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "bytes": in_units}
    return environment


def breakable(path: str) -> list[tuple[str, bool]]:
    """Return the parts of a path between which a line may break, and whether a part must stay whole.

    Lines break behind slashes, or inside of long names, but not inside of an extension or just before it.
    """
    *folders, name = path.split("/")
    end = len(PurePosixPath(name).stem)
    end = max(0, end - _KEPT_WITH_EXTENSION) if len(name) - end <= _LONGEST_EXTENSION else len(name)
    return [*((f"{folder}/", False) for folder in folders), (name[:end], False), (name[end:], True)]


def _when(iso_time: str) -> str:
    return f"{datetime.fromisoformat(iso_time).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _short(name: str) -> str:
    """Shorten a long name. Use it only if the full name is shown elsewhere on the page, or in the title."""
    return name if len(name) <= 40 else f"{name[:26]}\N{HORIZONTAL ELLIPSIS}{name[-12:]}"
