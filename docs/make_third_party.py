"""Write THIRD_PARTY.md: the packages in the images, with their licences. `make docs` runs this."""

import re
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "THIRD_PARTY.md"

INTRODUCTION = """# Third-party software in the images

This page is for people who must know what they distribute when they push an image. `make docs` writes it from the lock files
in requirements/ and from the metadata of the installed packages. A test compares it with the lock files.

The licence is what the package states about itself. Its text is in the image, in
`/opt/job/lib/python3.11/site-packages/NAME-VERSION.dist-info`. The licences of Debian's packages and of Python are in
`/usr/share/doc/*/copyright` and in the [base image](https://hub.docker.com/_/python).

- pillow-heif contains libheif and libde265 (LGPL-3.0) and libx265 (GPL-2.0), so its package as a whole is under GPL-2.0. To
  do without it, remove `--extra heif` from the Makefile and `pillow_heif` from the Dockerfile, and run `make lock`. HEIC
  photos are then refused with a message.
- Packages called nvidia-... are only in the image for GPUs. They are not free software. Read their licence before you push
  that image to a public registry.
- libgfortran, libgomp and libquadmath are GCC's (GPL-3.0 with the runtime library exception; libquadmath: LGPL-2.1).
- TensorFlow lists what is compiled into it in `tensorflow/THIRD_PARTY_NOTICES.txt`.

| Package | Version | Licence | Shared libraries of others in it |
|---|---|---|---|
"""

# Packages that have no licence in their metadata.
_STATED_ELSEWHERE = {"namex": "Apache-2.0"}


def packages() -> dict[str, str]:
    """Versions of the packages in the images for CPUs and for GPUs, by name."""
    platform = {"python_version": "3.11", "python_full_version": "3.11.16", "sys_platform": "linux"}
    versions = {}
    for variant in ("cpu", "gpu"):
        for line in (ROOT / "requirements" / f"{variant}.txt").read_text().splitlines():
            if "==" in line:
                locked = Requirement(line.removesuffix("\\"))
                if locked.marker is None or locked.marker.evaluate(platform):
                    versions[locked.name] = str(locked.specifier).removeprefix("==")
    return dict(sorted(versions.items()))


def page() -> str:
    """Return THIRD_PARTY.md, made from the lock files and from what is installed here."""
    rows = [
        f"| {name} | {version} | {_licence(name)} | {', '.join(_bundled(name))} |" for name, version in packages().items()
    ]
    return INTRODUCTION + "\n".join(rows) + "\n"


def _licence(name: str) -> str:
    if name.startswith("nvidia-"):
        return "LicenseRef-NVIDIA-Proprietary"
    metadata = distribution(_installed(name)).metadata
    if expression := metadata.get("License-Expression"):
        return expression
    stated = metadata.get("License", "").strip().partition("\n")[0]  # Some packages give the whole text.
    if stated and not stated.startswith(("Copyright", "Dual")):
        return stated
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier", []) if line.startswith("License")]
    return " or ".join(classifiers) or _STATED_ELSEWHERE[name]


def _bundled(name: str) -> list[str]:
    if name.startswith("nvidia-"):
        return []
    files = [file.name for file in distribution(_installed(name)).files or [] if ".libs/" in str(file)]
    return sorted({match.group() for file in files if (match := re.match(r"lib\w+", file))})


def _installed(name: str) -> str:
    """Return the package that is installed here for this one: tests need no GPU build of TensorFlow."""
    return "tensorflow-cpu" if name == "tensorflow" else name


if __name__ == "__main__":
    PAGE.write_text(page())
