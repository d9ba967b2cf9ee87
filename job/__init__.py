"""transfer-job: one batch job from labelled photos to an image classifier you can trust and ship.

From Python (docs/python.md):

    import job

    result = job.run("photos/", "runs/first", config={"fine_tune.epochs": 20})
    print(result.metrics["head"]["test"]["accuracy"], result.report)
"""

import importlib
from typing import TYPE_CHECKING, Any

from job.errors import (
    DataUnusable,
    Diverged,
    GateNotMet,
    JobError,
    Stopped,
    StorageFailed,
    TryAgainLater,
    UsageError,
)
from job.version import __version__

if TYPE_CHECKING:
    from job.api import compare, doctor, explore, export, lay_out, plan, predict, rank, report, run
    from job.config import Config
    from job.model.weights import fetch_weights, known_weights, verify_weights
    from job.pipeline.results import Ranking, Result

__all__ = [
    "Config",
    "DataUnusable",
    "Diverged",
    "GateNotMet",
    "JobError",
    "Ranking",
    "Result",
    "Stopped",
    "StorageFailed",
    "TryAgainLater",
    "UsageError",
    "__version__",
    "compare",
    "doctor",
    "explore",
    "export",
    "fetch_weights",
    "known_weights",
    "lay_out",
    "plan",
    "predict",
    "rank",
    "report",
    "run",
    "verify_weights",
]

_ELSEWHERE = {
    "Config": "job.config",
    **dict.fromkeys(("fetch_weights", "known_weights", "verify_weights"), "job.model.weights"),
}


def __getattr__(name: str) -> Any:
    """Import the attributes of the package when they are first used, because that takes time."""
    if name not in __all__:
        raise AttributeError(f"module 'job' has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "job.api")), name)
