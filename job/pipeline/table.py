"""The stages of a run in order: what each depends on, what it leaves, and how other modules treat it.

This is data only. It names no function and imports nothing of the job; `wiring.py` joins it to the functions. To add a
stage, add a row here, its function in `wiring.py`, its module in `job/stages/`, and its place on the page.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    `schema`: a number that is raised when the code changes the outcome.
    `after`: the stages whose outcome this one depends on.
    `settings`: the settings that the outcome depends on, as names that `job.pipeline.settings` knows.
    `artifact`: the class in `job.stages.NAME` that loads the outcome of an earlier run, if later stages need it in memory.
    `outputs`: files and folders in the output directory, checked by digest.
    `reads_stores_of`: stages whose stores in the cache this one reads. A missing store is made again before
    such a stage runs.
    `public`: files that are published for users, by their public name, if the stage has left them. A later stage's file
    replaces an earlier one's.
    `is_shared`: all workers run this stage at the same time. Other stages run on the chief alone.
    `needs_devices`: all workers compute with the backbone on their GPUs or CPUs.
    `looks_only`: the stage also works on data that cannot be trained on.
    `needs_gate`: the stage is skipped if the quality gate was not met.
    `unit`: what the stage counts, for rates. `loop`: the name of its compiled loop, which gets a rate of its own.
    `rest`: what the part of its wall time that was not measured separately is called in the report.
    """

    name: str
    schema: int
    after: tuple[str, ...]
    settings: tuple[str, ...]
    outputs: tuple[str, ...]
    artifact: str = ""
    reads_stores_of: tuple[str, ...] = ()
    public: Mapping[str, str] = field(default_factory=dict)
    is_shared: bool = False
    needs_devices: bool = False
    looks_only: bool = False
    needs_gate: bool = False
    unit: str = ""
    loop: str = ""
    rest: str = "other"


_ROWS = (
    Stage(
        name="intake",
        schema=5,
        after=(),
        settings=("decoding",),
        artifact="Intake",
        outputs=("stages/intake/table.parquet", "stages/intake/intake.json"),
        is_shared=True,
        looks_only=True,
        unit="photos",
    ),
    Stage(
        name="split",
        schema=5,
        after=("intake",),
        settings=("split", "intake.max_quarantined_fraction", "intake.drop_small_classes"),
        artifact="SplitExamples",
        outputs=("stages/split",),
        reads_stores_of=("intake",),
        public={"examples.parquet": "stages/split/examples.parquet"},
        looks_only=True,
        unit="rows",
    ),
    Stage(
        name="explore",
        schema=5,
        after=("split",),
        settings=("explore", "seed"),
        outputs=("stages/explore",),
        reads_stores_of=("intake",),
        looks_only=True,
        unit="photos",
    ),
    Stage(
        name="extract",
        schema=3,
        after=("split",),
        settings=("backbone", "augment", "extract", "fine_tune.inputs", "fine_tunes", "train.quality"),
        artifact="Extraction",
        outputs=("stages/extract",),
        reads_stores_of=("intake",),
        is_shared=True,
        needs_devices=True,
        unit="views",
        loop="forward",
    ),
    Stage(
        name="audit",
        schema=7,
        after=("split", "extract"),
        settings=("audit", "seed"),
        artifact="Audit",
        outputs=("stages/audit",),
        reads_stores_of=("intake", "extract"),
        public={"examples.parquet": "stages/audit/examples.parquet", "label_issues.csv": "stages/audit/label_issues.csv"},
        unit="photos",
    ),
    Stage(
        name="head",
        schema=5,
        after=("audit", "extract"),
        settings=("head",),
        artifact="ChosenHead",
        outputs=("stages/head",),
        reads_stores_of=("extract",),
        rest="solving",
    ),
    Stage(
        name="fine_tune",
        schema=4,
        after=("split", "audit", "extract", "head"),
        settings=("fine_tune", "train"),
        artifact="FineTuned",
        outputs=("stages/fine_tune",),
        reads_stores_of=("intake", "extract"),
        is_shared=True,
        needs_devices=True,
        unit="examples",
        loop="training",
    ),
    Stage(
        name="evaluate",
        schema=10,
        after=("audit", "extract", "head", "fine_tune"),
        settings=("evaluate", "seed"),
        artifact="Evaluation",
        outputs=("stages/evaluate",),
        reads_stores_of=("intake", "extract"),
        public={
            "predictions.parquet": "stages/evaluate/predictions.parquet",
            "comparison.parquet": "stages/evaluate/comparison.parquet",
        },
        unit="photos",
    ),
    Stage(
        name="heatmaps",
        schema=1,
        after=("audit", "extract", "head", "fine_tune", "evaluate"),
        settings=("heatmaps", "seed"),
        outputs=("stages/heatmaps",),
        reads_stores_of=("intake", "extract"),
    ),
    Stage(
        name="export",
        schema=8,
        after=("audit", "extract", "head", "fine_tune", "evaluate"),
        settings=("export.parity_photos", "export.max_changed_fraction", "decoding"),
        outputs=("stages/export",),
        reads_stores_of=("intake",),
        public={"model": "stages/export/model"},
        needs_gate=True,
        rest="export",
    ),
    Stage(
        name="convert",
        schema=3,
        after=("audit", "evaluate", "export"),
        settings=("export.formats", "export.parity_photos", "export.max_changed_float", "export.max_changed_int8"),
        outputs=("stages/convert",),
        reads_stores_of=("intake",),
        public={"model": "stages/convert/model"},
        needs_gate=True,
        rest="converting",
    ),
    Stage(
        name="report",
        schema=7,
        after=("explore", "audit", "head", "fine_tune", "evaluate", "heatmaps", "export", "convert"),
        settings=("report",),
        outputs=("stages/report",),
        public={"report.html": "stages/report/report.html", "model/README.md": "stages/report/README.md"},
        looks_only=True,
    ),
)
STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _ROWS}
