"""Write docs/configuration.md and docs/backbones.md from the code: `make docs`."""

import json
from pathlib import Path

from job.config import fields
from job.model.backbones import table
from job.wording import allowed

HERE = Path(__file__).parent

CONFIGURATION = """# Configuration

One TOML file (`--config run.toml`), `--set section.key=value` on top of it. `--dry-run` prints the resolved file.
A `*` marks settings that say how the work is done and not what comes out; changing them makes nothing stale.

| Key | Default | Allowed | Meaning |
|---|---|---|---|
"""

BACKBONES = """# Backbones

Every backbone of keras.applications. Each is given pixels from 0 to 255; the job scales them as the backbone wants.

"""


def main() -> None:
    rows = []
    for dotted, field in fields():
        value = field.get_default()
        default = "" if value is None else f"`{json.dumps(value)}`"
        mark = " *" if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("how") else ""
        rows.append(f"| `{dotted}`{mark} | {default} | {allowed(field)} | {field.description} |")
    (HERE / "configuration.md").write_text(CONFIGURATION + "\n".join(rows) + "\n")
    (HERE / "backbones.md").write_text(BACKBONES + table() + "\n")


if __name__ == "__main__":
    main()
