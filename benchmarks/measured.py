"""Time and memory of a process and of all processes that it starts, and a description of the machine."""

import ctypes
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"

_PR_SET_CHILD_SUBREAPER = 36
_ORPHANS_TIMEOUT_S = 60.0


def machine() -> str:
    cpu = next(
        line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    )
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}"


def median_and_spread(values: list[float], digits: int) -> str:
    """Return the median, with the lowest and highest value in brackets if there are several values."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def run_measured(command: list[Any]) -> dict[str, float]:
    """Run a command to its end, and wait for all processes that it leaves behind.

    `wall_s` until the command itself ends, `cpu_s` of all processes as the kernel counts them, `peak_mb` of the largest one,
    `peak_together_mb` of all at the same time (shared pages counted once, looked at every second).
    """
    # Orphans become children of this process, so that their CPU time is counted, for example workers of a fork server.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile("w+") as said, _MemoryWatch() as memory:
        started = time.monotonic()
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # Popen cannot get it any more, so it is set here.
        wall_s = time.monotonic() - started
        usages = [usage, *_orphans()]
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))}\nended with {process.returncode}:\n{said.read()[-4000:]}")
    return {
        "wall_s": wall_s,
        "cpu_s": sum(u.ru_utime + u.ru_stime for u in usages),
        "peak_mb": max(u.ru_maxrss for u in usages) / 1024,
        "peak_together_mb": memory.peak_mb,
    }


def save_peer(
    file: Path, started: float, epochs: list[dict[str, Any]], predicted: dict[str, str], label_of: dict[str, str]
) -> None:
    """Write what a recipe has found: its epochs, and the class that it predicts for each test file.

    `started` is the value of `time.monotonic` at its start. `label_of` has the true class of each test file.
    """
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result = {
        "wall_s": time.monotonic() - started,
        "cpu_s": sum(u.ru_utime + u.ru_stime for u in usage),
        "peak_mb": max(u.ru_maxrss for u in usage) / 1024,
        "epochs": epochs,
        "val_accuracy": epochs[-1]["val_accuracy"],
        "test_accuracy": sum(predicted[name] == label for name, label in label_of.items()) / len(label_of),
        "predicted": predicted,
    }
    file.write_text(json.dumps(result, indent=1) + "\n")


def _orphans() -> list[Any]:
    """Return the resources used by processes that outlived the command."""
    usages = []
    deadline = time.monotonic() + _ORPHANS_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            pid, _, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return usages
        if pid:
            usages.append(usage)
        else:
            time.sleep(0.02)
    raise SystemExit("The command left processes behind that do not exit. End them and run the benchmark again.")


class _MemoryWatch(threading.Thread):
    """Peak of the memory of all descendants of this process, summed up once a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self.peak_mb = 0.0

    def __enter__(self) -> "_MemoryWatch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(1.0):
            self.peak_mb = max(self.peak_mb, sum(map(_proportional_mb, _descendants(os.getpid()))))


def _descendants(ancestor: int) -> list[int]:
    parent_of = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent_of[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, newest = [], [ancestor]
    while newest:
        newest = [pid for pid, parent in parent_of.items() if parent in newest]
        found += newest
    return found


def _proportional_mb(pid: int) -> float:
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:  # The process has ended.
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
