"""The commands as functions. The command line (`cli.py`) is thin over them, and `import job` gives them to Python.

Nothing here reads `sys.argv` or the environment, installs a signal handler, or ends the process: what the command line knows
beside its options is in a `Session`.
"""

from job.api.finished import compare, export, lay_out, predict, report
from job.api.opening import Place, Settings
from job.api.runs import demo, doctor, explore, plan, rank, run

__all__ = [
    "Place",
    "Settings",
    "compare",
    "demo",
    "doctor",
    "explore",
    "export",
    "lay_out",
    "plan",
    "predict",
    "rank",
    "report",
    "run",
]
