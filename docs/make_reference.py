"""Write docs/configuration.md and docs/backbones.md from the code. `make docs` runs this."""

import json
from pathlib import Path

from job.config import fields
from job.model.backbones import BACKBONES
from job.model.hub.architecture import FAMILIES
from job.model.hub.names import PRESETS
from job.model.weights import known_weights
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

This page is for people who choose a backbone, or who need its weights on a machine without a network. It says which to take
when, lists all names with the licences of their weights, and explains how to compare backbones with `rank`.

    transfer-job run --data photos/ --out runs/first --set backbone.name=dinov2_small --set intake.image_size=224
    transfer-job rank --data photos/ --out runs/rank --backbones mobilenet_v2,efficientnet_v2_b0

## Which one to take

| Your case | Backbone |
|---|---|
| a CPU, a small model, a first run | `mobilenet_v2` (smaller with `backbone.alpha=0.35`), `efficientnet_v2_b0` |
| few photos of a class, or classes that look alike | `dinov2_small`, `dinov2_base`, with `backbone.unfreeze=none` |
| a GPU, and thousands of photos to fine-tune on | `vit_base`, `deit_base`, `efficientnet_v2_s`, `convnext_tiny` |
| things that text on the web names: products, brands, places, drawings | `siglip2_base` |
| the best features, if your company accepts the licence of Meta | `dinov3_small`, `dinov3_base` |

`rank` compares them on your photos, in one pass for each. These are starting points from published figures, not results:
where this project is made, no weights of the vision transformers were at hand.

**Published accuracy on ImageNet**, in percent. The ways to measure differ, so compare within a column. *Linear* is a linear
classifier on features that stay as they are, which is what the head of this job is; *k-NN* needs no training; *zero-shot*
sees no labelled photo; *whole* is the model with its own classifier, trained on ImageNet.

| Backbone | Parameters | k-NN | Linear | Zero-shot | Whole | Source |
|---|---|---|---|---|---|---|
| `mobilenet_v2` | 3.5 M | | | | 71.3 | [Keras][keras] |
| `resnet50` | 25.6 M | | | | 74.9 | [Keras][keras] |
| `efficientnet_v2_b0` | 7.2 M | | | | 78.7 | [Keras][keras] |
| `efficientnet_v2_s` | 21.6 M | | | | 83.9 | [Keras][keras] |
| `deit_small` (distilled) | 22 M | | | | 81.2 | [DeiT][deit] |
| `deit_base` (distilled) | 87 M | | | | 83.4 | [DeiT][deit] |
| `vit_base_patch32` | 88 M | | | | 81.8, fine-tuned | [ViT][vit] |
| `vit_base` | 86 M | | | | 84.6, fine-tuned | [ViT][vit] |
| `dinov2_small` | 21 M | 79.0 | 81.1 | | | [DINOv2][dinov2] |
| `dinov2_registers_small` | 21 M | 79.1 | 80.9 | | | [DINOv2][dinov2] |
| `dinov2_base` | 86 M | 82.1 | 84.5 | | | [DINOv2][dinov2] |
| `dinov2_registers_base` | 86 M | 82.0 | 84.6 | | | [DINOv2][dinov2] |
| `siglip2_base` | 86 M | | | 78.2 | | [SigLIP 2][siglip2] |

Fine-tuning DINOv2 brings "small gains", [about 2 points on ImageNet][dinov2-card]. For DINOv3, see [its
paper](https://arxiv.org/abs/2508.10104).

**Fine-tuning a vision transformer**: papers let each block learn with 0.65 to 0.75 of the rate of the block above it
([BEiT](https://arxiv.org/abs/2106.08254), [MAE](https://arxiv.org/abs/2111.06377)). To do so, add
`--set fine_tune.layer_decay=0.75`. With `mobilenet_v2` on flowers such rates gained nothing
([decision 32](decisions/0032-accuracy-against-time.md)). In a CNN, a block is a residual block or what lies between two of
them. VGG and the first MobileNet have no branches, and are one block.

**Measured here**, on the 3,670 photos of `flowers`: `mobilenet_v2` with `alpha=0.35` at 160 px reaches 0.893 (head alone
0.854), with `alpha=1.0` at 224 px 0.939 ([README](../README.md#accuracy-and-speed)).

[keras]: https://keras.io/api/applications
[deit]: https://github.com/facebookresearch/deit/blob/main/README_deit.md
[vit]: https://github.com/google-research/vision_transformer
[dinov2]: https://github.com/facebookresearch/dinov2
[dinov2-card]: https://github.com/facebookresearch/dinov2/blob/main/MODEL_CARD.md
[siglip2]: https://github.com/google-research/big_vision/blob/main/big_vision/configs/proj/image_text/README_siglip2.md

## Licences

The licence of weights is not that of the program that runs them. A model that you fine-tune and ship contains them.

"""

LICENCES = """
The links lead to who states the licence. If somebody has converted the weights, as KerasHub has, look at the page of the
conversion, too.

- **DINOv3** is under a licence of Meta's own, not one of the usual ones. Read it before you use the weights, or pass on a
  model that you have fine-tuned. To download them, you must accept it.
- **Not stated**: earlier documentation of Keras names the licences of the older weights. For the later ones nothing is
  stated beside the licence of Keras itself, Apache-2.0.
- **SigLIP 2**: [the authors][siglip2] put software under Apache-2.0 and other material under CC-BY-4.0, and do not say which
  of them weights are.

## Backbones of keras.applications

Each one gets pixels from 0 to 255. The job scales them as the backbone needs it.

"""

HUB = """
Photos need at least 32 px per side, for Xception 71 px, and for the Inceptions 75 px.

## Vision transformers of KerasHub

Each one is a preset of KerasHub, built from Keras' own layers ([decision 41](decisions/0041-kerashub.md)). The image size
must be a multiple of the patch size. `features` is what `backbone.features=auto` means.

"""

WHICH = """
`hub:PRESET` is any other preset of these families, by its name in KerasHub (`hub:dinov2_large`) or its address
(`hub:kaggle://OWNER/MODEL/keras/VARIATION`, `hub:hf://OWNER/MODEL`). Its weights say how it is built.

## Weights

    transfer-job run ... --weights imagenet            # the published ones; preset is another word for it
    transfer-job run ... --weights weights/            # a folder or prefix that weights fetch has filled
    transfer-job run ... --weights my-preset/          # a folder that save_to_preset of KerasHub has written
    transfer-job run ... --weights gs://BUCKET/x.weights.h5
    transfer-job run ... --weights random

Published weights are downloaded once: those of keras.applications into `~/.keras/models`, presets into `~/.cache/kagglehub`.
Presets need kagglehub, which is in the image (`pip install 'transfer-job[hub]'` elsewhere); addresses `hf://` need `pip
install huggingface-hub`. For presets whose licence must be accepted, set `KAGGLE_API_TOKEN` or `HF_TOKEN`. KerasHub is
not needed.

From a preset, only numbers are read: its `model.weights.h5`, its `config.json` and, if it has one, its
`image_converter.json`. Nothing in them is run. Stages run again if one of the three changes. Links that lead out of the
folder, or out of an HDF5 file, are refused.

### Weights without a network

    transfer-job weights list                                                     # names, licences, where they come from
    transfer-job weights fetch mobilenet_v2 dinov2_small --to weights/            # on a machine with a network
    transfer-job weights fetch mobilenet_v2:alpha=0.35:image_size=160 --to gs://BUCKET/weights
    transfer-job weights verify weights/                                          # says which file is changed or missing

`fetch` adds files and overwrites none. `weights.json` in the place has the source, the licence and the SHA-256 of each file.
A run refuses weights that have changed since. MobileNets have other weights for other image sizes: without `image_size`,
`fetch` takes those for the default size.

On a machine without a network, the job takes them from:

| Place | How |
|---|---|
| a folder that is mounted or copied | `--weights weights/`, or `KERAS_HOME=weights` for all runs |
| a bucket | `--weights gs://BUCKET/weights` |
| the image | fetch into the folder `weights/` of the checkout and build it: [weights/README.md](../weights/README.md) |

[Docker](docker.md), [Kubernetes](kubernetes.md) and [Slurm](slurm.md) have the commands. If weights can be neither found nor
downloaded, the message contains the command for the machine with a network.

## Compare backbones

    transfer-job rank --data photos/ --out runs/rank --backbones LIST [--image-size 96,160] [--weights imagenet|random|PATH]
                      [--fine-tune]

`LIST` contains candidates, separated by commas. Each one is `NAME[:alpha=A][:weights=imagenet|random|PATH][:image_size=S]`.

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


def hub() -> str:
    """Return the short names of KerasHub's presets as a Markdown table."""
    heads = ["| `backbone.name` | preset of KerasHub | patch size | `features` |", "|---|---|---|---|"]
    rows = []
    for name, known in PRESETS.items():
        features = FAMILIES[known.architecture.family].features
        rows.append(f"| `{name}` | `{known.name}` | {known.architecture.patch_size} px | {features} |")
    return "\n".join([*heads, *rows])


def licences() -> str:
    """Return the licences of all weights as a Markdown table."""
    names: dict[tuple[str, str], list[str]] = {}
    for known in known_weights():
        stated_in = known.stated_in if known.stated_in.startswith("https") else ""
        names.setdefault((known.licence, stated_in), []).append(f"`{known.name}`")
    rows = []
    for (licence, stated_in), found in sorted(names.items()):
        linked = f"[{licence}]({stated_in})" if stated_in else licence
        rows.append(f"| {linked} | {', '.join(found)} |")
    return "\n".join(["| Licence of the weights | Backbones |", "|---|---|", *rows])


def main() -> None:
    rows = []
    for dotted, field in fields():
        value = field.get_default()
        default = "left out" if value is None else f"`{json.dumps(value)}`"
        mark = " *" if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("how") else ""
        rows.append(f"| `{dotted}`{mark} | {default} | {allowed(field)} | {field.description} |")
    (HERE / "configuration.md").write_text(CONFIGURATION + "\n".join(rows) + "\n")
    parts = (INTRODUCTION, licences(), "\n", LICENCES, backbones(), "\n", HUB, hub(), "\n", WHICH)
    (HERE / "backbones.md").write_text("".join(parts))


if __name__ == "__main__":
    main()
