"""Write docs/configuration.md and docs/backbones.md from the code. `make docs` runs this."""

import json
from pathlib import Path

from job.config import fields
from job.model.backbones import BACKBONES
from job.text.wording import allowed

HERE = Path(__file__).parent

CONFIGURATION = """# Configuration

This page is for people who want to change a setting. It lists all of them. A run needs none: each one has a default.

    transfer-job run ... --set fine_tune.epochs=20 --set intake.image_size=160
    transfer-job run ... --config run.toml       # --set overrides the file
    transfer-job run ... --dry-run               # prints the resolved configuration, and which stages would run

In the file, the part of the name before the dot is a section:

    seed = 1
    [fine_tune]
    epochs = 20

After a change, the stages that depend on the setting run again. A setting with a `*` changes only how the work is done, not
the result: no stage runs again. Names that end in `_s` are seconds, `_px` pixels, `_mb` and `_gb` megabytes and gigabytes.

| Setting | Default | Allowed | Meaning |
|---|---|---|---|
"""

INTRODUCTION = """# Backbones

This page is for people who choose a backbone. It lists all names, and explains how to compare backbones with `rank`.

    transfer-job run --data photos/ --out runs/first --set backbone.name=efficientnet_v2_b0
    transfer-job rank --data photos/ --out runs/rank --backbones mobilenet_v2,efficientnet_v2_b0

You can use every backbone of keras.applications. Each one gets pixels from 0 to 255. The job scales them as the
backbone needs it.

"""

WHICH = """
Photos need at least 32 px per side, for Xception 71 px, and for the Inceptions 75 px.

## Which backbone?

    transfer-job rank --data photos/ --out runs/rank --backbones LIST [--image-size 96,160] [--weights imagenet|random|FILE]
                      [--fine-tune]

`LIST` contains candidates, separated by commas. Each one is `NAME[:alpha=A][:weights=imagenet|random|FILE][:image_size=S]`.

- A candidate without an image size is tried at each `--image-size`, or at `intake.image_size`.
- A candidate without weights gets those of `--weights`. If a path contains a comma or a colon, give it to `--weights`.
- `--config` and `--set` work as in `run`. In `[backbone]`, only the weights are used.

`rank` prints a table, and at the end the `run` command for the recommended candidate:

- **Accuracy** without `--fine-tune`: it is computed out of fold (`audit.folds` folds) on the training and validation photos
  together. For each photo, a head predicts from 256 principal components of the features. That head has seen neither the
  photo nor a copy of it. Its regularisation is chosen by log-loss over the same folds, in the same way for all candidates.
  The accuracy says which features are better. It does not say what `run` reaches after fine-tuning. The test set (held-out
  photos) is decoded and gets features, which a later run reuses. But no head and no choice uses it.
- **Accuracy** with `--fine-tune`: each candidate is fine-tuned as `run` would, but for 2 epochs unless `fine_tune.epochs` is
  set. The accuracy is that on the validation photos. These are fewer than in the comparison of heads, so the intervals are
  wider, and each candidate costs more. Use it where much of the backbone is trained (`backbone.unfreeze`), because features
  that are best as they are need not be best after training.
- **Difference**: all candidates are tested on the same photos and folds. So the difference to the best candidate is paired,
  and its interval is narrower than the intervals of the two accuracies. Copies are found by their pixels, so a few photos
  may be usable at only one image size. They are left out of the comparison, and `rank` prints their number.
- **Cost**: multiply-adds (MACs) for one photo; CPU and wall milliseconds of the compiled forward pass, in batches of
  `extract.batch_size` (the median of some batches on this device); megabytes of float32 weights; feature width; kilobytes
  stored per photo (pixels and features); seconds that this machine needed for the features of all photos.
- **Recommended**: the candidate with the fewest multiply-adds, among those that are not worse than the best one. The 95%
  interval of their difference to it includes zero, and excludes a loss of more than two points. With few photos the interval
  of a cheaper candidate may include both. Then `rank` does not recommend it, but says that there are too few photos to tell,
  and about how many would tell.

If a candidate cannot be built (its weights do not fit or cannot be downloaded), `rank` lists it with the reason and
compares the others. Each candidate has its own folder in `--out`. If you start `rank` again, it resumes and reuses what is
there.

The recommended `run` command uses the same cache, so it finds the decoded photos. With `backbone.unfreeze=none` it also
finds their features. With fine-tuning it stores features again, because they must pass the cut.
"""


def backbones() -> str:
    """Return the backbones as a Markdown table."""
    words = {
        "tf": "x / 127.5 - 1",
        "torch": "standardised with the means and deviations of ImageNet",
        "caffe": "BGR, means subtracted",
        "none": "done by the model",
    }
    rows = [
        f"| `{name}` | `{b.constructor}` | {words[b.scaling]} | {'yes' if b.has_alpha else ''} |"
        for name, b in BACKBONES.items()
    ]
    return "\n".join(["| `backbone.name` | keras.applications | input scaling | `alpha` |", "|---|---|---|---|", *rows])


def main() -> None:
    rows = []
    for dotted, field in fields():
        value = field.get_default()
        default = "left out" if value is None else f"`{json.dumps(value)}`"
        mark = " *" if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("how") else ""
        rows.append(f"| `{dotted}`{mark} | {default} | {allowed(field)} | {field.description} |")
    (HERE / "configuration.md").write_text(CONFIGURATION + "\n".join(rows) + "\n")
    (HERE / "backbones.md").write_text(INTRODUCTION + backbones() + "\n" + WHICH)


if __name__ == "__main__":
    main()
