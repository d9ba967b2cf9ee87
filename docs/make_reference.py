"""Write docs/configuration.md and docs/backbones.md from the code: `make docs`."""

import json
from pathlib import Path

from job.config import fields
from job.model.backbones import table
from job.text.wording import allowed

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

WHICH = """
Photos need at least 32 px a side; Xception takes 71 and more, the Inceptions 75.

## Which backbone?

    transfer-job rank --data photos/ --out runs/rank --backbones LIST [--image-size 96,160] [--weights imagenet|random|FILE]

`LIST` has candidates with commas between them, each `NAME[:alpha=A][:weights=imagenet|random|FILE][:image_size=S]`.
One without an image size is tried at each `--image-size`, or at `intake.image_size`; one without weights has those of
`--weights`. A path with a comma or a colon in it only goes to `--weights`. `--config` and `--set` are as in `run`; of
`[backbone]` only the weights are looked at.

- **Accuracy** is out of fold (`audit.folds` of them) over the training and validation photos together: a head on 256
  principal components of the features, which saw neither the photo nor a copy of it. Its strength is chosen by
  log-loss over the same folds, alike for all. It says which features are better, not what `run` will reach after
  fine-tuning. The held-out photos are decoded and have features, which a later run finds, but no head and no choice
  sees them.
- **All candidates share photos and folds**, so the difference to the best is paired, and its interval is narrower
  than those of the two accuracies. Copies are told from pixels, so a few photos may be usable at one image size only;
  they are left out of the comparison, and their number is printed.
- **Cost**: multiply-adds (MACs) of one photo; CPU and wall milliseconds of the forward pass in batches of
  `extract.batch_size`, compiled (the median of some batches, on the device at hand); megabytes of float32 weights;
  feature width; kilobytes stored for a photo, pixels and features; seconds that this machine took for the features of
  all photos.
- **Recommended** is the candidate with the fewest multiply-adds whose 95% interval of the paired difference to the
  best reaches zero. With few photos that interval is wide: the line shows it, so look at it before you give up two
  points.

A candidate that cannot be built (weights that do not fit, or that cannot be downloaded) is listed with its reason,
and the others are ranked without it. Each works in a folder of its own below `--out`; called again, `rank` goes on
where it stopped and takes what is there. The recommended `run` command names the same cache: it finds the decoded
photos there and, with `backbone.unfreeze=none`, their features; where something is fine-tuned, features are stored
anew, through the cut.
"""


def main() -> None:
    rows = []
    for dotted, field in fields():
        value = field.get_default()
        default = "" if value is None else f"`{json.dumps(value)}`"
        mark = " *" if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("how") else ""
        rows.append(f"| `{dotted}`{mark} | {default} | {allowed(field)} | {field.description} |")
    (HERE / "configuration.md").write_text(CONFIGURATION + "\n".join(rows) + "\n")
    (HERE / "backbones.md").write_text(BACKBONES + table() + "\n" + WHICH)


if __name__ == "__main__":
    main()
