"""The checks of GPUs: what the machine says about them, what follows from it, and a trial in a process of its own.

`look` and `attempt` ask the machine, and `judge` and `judge_trial` judge the answers, also those that were recorded on
another machine. As `python -m job.preflight.gpus` this module is the trial: it computes on each GPU, and tells after each
step how it went. If the driver hangs or crashes, only that process does.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from job.cluster.devices import Devices, without_gpu
from job.cluster.environment import Cluster
from job.errors import TryAgainLater, UsageError
from job.preflight.base import Finding, ok, warning
from job.runtime.children import written_by
from job.runtime.stop import ignore_signals

if TYPE_CHECKING:
    import tensorflow as tf

_ASKED = "index,uuid,name,driver_version,compute_cap,memory.total,memory.free"
_QUERY = ("nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader,nounits")
_QUERY_TIMEOUT_S, _TRIAL_TIMEOUT_S, _DIES_WITHIN_S = 20.0, 300.0, 5.0
# The oldest driver for each major version of CUDA, from NVIDIA's page "Minor Version Compatibility".
_OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
_STEPS = {
    "devices": "TensorFlow could not set up the GPUs",
    "kernel": "A convolution on a GPU failed",
    "xla": "A function that is compiled with XLA failed",
    "all_reduce": "A sum over all GPUs (all-reduce, by NCCL) failed",
}
_CONTAINER = "docker run --gpus all, nvidia.com/gpu in Kubernetes, or --nv in Apptainer"
_TELLING = re.compile(r"CUDA_ERROR|cuInit|dlopen|NCCL|Error|not built|driver", re.IGNORECASE)
_TAKEN = re.compile(r"ResourceExhausted|OUT_OF_MEMORY|out of memory|DEVICE_UNAVAILABLE|busy or unavailable", re.IGNORECASE)


class Answer(NamedTuple):
    """The end of another program: its exit code (None if it took too long or is not installed), and what it wrote."""

    exit_code: int | None
    out: str = ""
    err: str = ""


class Gpu(NamedTuple):
    """A GPU, from a line of nvidia-smi. `capability` is its compute capability, such as 8.9. Memory can be unknown."""

    number: str
    uuid: str
    name: str
    driver: str
    capability: float
    total_mib: int | None
    free_mib: int | None


@dataclass(frozen=True)
class Seen:
    """The answers of a machine about its GPUs.

    `build` is the answer of `tf.sysconfig.get_build_info`. `num_devices` is the number of GPUs in /dev that this process may
    use, and `visible` what CUDA_VISIBLE_DEVICES lists, or None. `cuda` is the version of CUDA that the driver supports, as
    libcuda says it (12040 is 12.4), or None without that library. `query` is the answer of nvidia-smi.
    """

    build: Mapping[str, Any]
    num_devices: int
    visible: tuple[str, ...] | None
    cuda: int | None
    query: Answer

    @property
    def gpus(self) -> list[Gpu]:
        """The GPUs that nvidia-smi lists and this process may use."""
        found = [gpu for line in self.query.out.splitlines() if (gpu := _gpu(line))]
        visible = self.visible or ()
        chosen = [gpu for gpu in found if any(gpu.number == v or gpu.uuid.startswith(v) for v in visible)]
        return chosen or (found if self.num_devices else [])  # Slices of a GPU (MIG) have names that no line has.


def look(cluster: Cluster, check_stop: Callable[[], None]) -> Seen:
    """Ask this machine about its GPUs, in a fraction of a second, without importing TensorFlow."""
    query = _answer(_QUERY, _QUERY_TIMEOUT_S, check_stop) if cluster.num_gpus else Answer(None)
    return Seen(_build_info(), cluster.num_gpus, cluster.visible_gpus, _cuda_of_driver(), query)


def attempt(check_stop: Callable[[], None], *, logical_cpus: int = 0) -> Answer:
    """Compute on each GPU of this worker in a process of its own, or on so many logical CPUs."""
    command = (sys.executable, "-P", "-m", "job.preflight.gpus", str(logical_cpus))
    return _answer(command, _TRIAL_TIMEOUT_S, check_stop, {"TF_CPP_MIN_LOG_LEVEL": "0"})


def judge(seen: Seen, *, required: bool) -> Iterator[Finding]:
    """Yield what follows from what was seen. The trial decides whether a GPU works, so all but its absence only warns."""
    absence = _absence(seen)
    if absence:
        yield Finding.of(without_gpu(absence)) if required else warning(f"{absence} The run computes on the CPU.")
    elif not seen.num_devices:
        nothing = f"There is none in /dev. Give the job one: {_CONTAINER}, --gres=gpu:1 in Slurm."
        if seen.visible == ():
            nothing = "CUDA_VISIBLE_DEVICES lists none."
        yield Finding.of(without_gpu(nothing)) if required else ok("none: the run computes on the CPU")
    else:
        found = [f"{gpu.name} ({gpu.capability}, driver {gpu.driver})" for gpu in seen.gpus]
        yield ok(", ".join(found) or f"{seen.num_devices} in /dev")
        for judged in (_nvidia_smi, _driver, _kernels, _memory):
            yield from judged(seen)


def _absence(seen: Seen) -> str:
    """Return why TensorFlow will use no GPU although GPUs are here or were meant to be; otherwise an empty string."""
    is_of_gpus = bool(seen.build.get("is_cuda_build"))
    if is_of_gpus and not seen.num_devices and seen.visible != ():
        return f"TensorFlow is the build for GPUs, and no GPU is visible. Give the container one: {_CONTAINER}."
    if seen.num_devices and not is_of_gpus:
        return (
            f"{seen.num_devices} GPUs are here, and TensorFlow is the build for CPUs. Use the image of VARIANT=gpu, or "
            "pip install 'transfer-job[gpu]' in a new environment."
        )
    if seen.num_devices and seen.cuda is None:
        return (
            f"{seen.num_devices} GPUs are here, and the driver's library libcuda.so.1 is not. Start the container with the "
            f"NVIDIA Container Toolkit ({_CONTAINER}), and with NVIDIA_DRIVER_CAPABILITIES=compute,utility."
        )
    return ""


def _nvidia_smi(seen: Seen) -> Iterator[Finding]:
    if seen.query.exit_code:
        said = (seen.query.out + seen.query.err).strip().splitlines()
        yield warning(
            f"nvidia-smi failed with {seen.query.exit_code}: {said[0] if said else 'no message'} Ask the administrator of "
            "this machine: the driver may have to be loaded again, or the machine or its container to be started again."
        )


def _driver(seen: Seen) -> Iterator[Finding]:
    wanted = int(str(seen.build.get("cuda_version", "0")).partition(".")[0])
    if seen.cuda and seen.cuda // 1000 < wanted:
        yield warning(
            f"The driver supports CUDA {seen.cuda // 1000}.{seen.cuda % 1000 // 10}, and TensorFlow needs CUDA {wanted}. "
            f"Install driver {_OLDEST_DRIVERS.get(wanted, 'of that version')} or newer on this machine."
        )


def _kernels(seen: Seen) -> Iterator[Finding]:
    compiled = [found for text in seen.build.get("cuda_compute_capabilities", ()) if (found := _compiled(text))]
    for capability in sorted({gpu.capability for gpu in seen.gpus}) if compiled else ():
        if any(int(have) == int(capability) and have <= capability for _, have in compiled):
            continue
        there = ", ".join(map(str, sorted(have for _, have in compiled)))
        names = ", ".join(sorted({gpu.name for gpu in seen.gpus if gpu.capability == capability}))
        then = "TensorFlow ignores this GPU."
        if any(kind == "compute" and have <= capability for kind, have in compiled):
            then = "The driver compiles them at the first start in up to half an hour, or fails with CUDA_ERROR_INVALID_PTX."
        yield warning(
            f"TensorFlow has no kernels for the compute capability {capability} of {names}, only for {there}. "
            f"{then} Use another GPU, or a build of TensorFlow for this one, as in the images of NVIDIA (nvcr.io), or "
            "compute on the CPU: CUDA_VISIBLE_DEVICES="
        )


def _memory(seen: Seen) -> Iterator[Finding]:
    for gpu in seen.gpus:
        if gpu.total_mib and gpu.free_mib is not None and gpu.free_mib < gpu.total_mib / 2:
            yield warning(
                f"GPU {gpu.number} has {gpu.free_mib:,} of {gpu.total_mib:,} MiB free: another process uses it. nvidia-smi "
                "shows which. Wait until it has ended, or choose another GPU: CUDA_VISIBLE_DEVICES=INDEX"
            )


def judge_trial(seen: Seen, trial: Answer, *, required: bool) -> Iterator[Finding]:
    """Yield what follows from the answer of the trial."""
    said = [json.loads(line) for line in trial.out.splitlines() if line.startswith('{"step"')]
    done = {one["step"]: one.get("fault", "") for one in said}
    num_gpus = said[0]["gpus"] if said else None
    if num_gpus == 0:
        reason = f"TensorFlow finds none of them: {_telling(trial.err)}"
        yield Finding.of(without_gpu(reason)) if required else warning(f"{reason} The run computes on the CPU.")
        return
    yield from (_failed(step, fault) for step, fault in done.items() if fault)
    undone = [step for step in _STEPS if step not in done and not (step == "all_reduce" and num_gpus == 1)]
    if undone and trial.exit_code is None:
        text = f"{_STEPS[undone[0]]}: there was no answer for {_TRIAL_TIMEOUT_S:.0f} s."
        hangs = TryAgainLater(f"{text} The GPU or its driver hangs: look for Xid errors (dmesg), and try another machine.")
        yield warning(f"{text} The driver may be compiling.") if any(_kernels(seen)) else Finding.of(hangs)
    elif undone:
        yield _failed(undone[0], f"the process ended with {trial.exit_code}. {_telling(trial.err)}")
    elif not any(done.values()):
        yield ok(f"{', '.join(step for step in done if step != 'devices')}: done on {num_gpus} GPUs")


def _failed(step: str, fault: str) -> Finding:
    text = f"{_STEPS[step]}: {fault}"
    if step == "xla":  # Only on CPUs does a run compile with it (`data/augment.py`).
        return warning(f"{text} A run does not need XLA on GPUs.")
    if _TAKEN.search(fault):
        used = f"{text} Another process may use this GPU (nvidia-smi): try again when it has ended."
        return Finding.of(TryAgainLater(used))
    way_out = "If no line above explains it, try another machine, or compute on the CPU: CUDA_VISIBLE_DEVICES="
    return Finding.of(UsageError(f"{text} {way_out}"))


def _telling(text: str) -> str:
    """Return the last line that may say what is wrong."""
    lines = [line.strip() for line in text.splitlines() if _TELLING.search(line)]
    return lines[-1][-300:] if lines else "it does not say why."


def _gpu(line: str) -> Gpu | None:
    """Return the GPU of a line of nvidia-smi; None for any other line."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != 7 or not re.fullmatch(r"\d+\.\d+", values[4]):
        return None
    total, free = (int(value) if value.isdigit() else None for value in values[5:])
    number, uuid, name, driver, capability = values[:5]
    return Gpu(number, uuid, name, driver, float(capability), total, free)


def _compiled(text: str) -> tuple[str, float] | None:
    """Return the kind of a compiled architecture and its compute capability: sm and 8.9 from sm_89."""
    found = re.fullmatch(r"(sm|compute)_(\d+)[a-z]?", text)
    return (found[1], int(found[2]) / 10) if found else None


def _build_info() -> dict[str, Any]:
    """Return what `tf.sysconfig.get_build_info` returns, from the file that it reads: importing TensorFlow takes seconds."""
    found = importlib.util.find_spec("tensorflow")
    for folder in (found and found.submodule_search_locations) or ():
        with suppress(OSError, KeyError):
            return dict(runpy.run_path(f"{folder}/python/platform/build_info.py")["build_info"])
    return {}


def _cuda_of_driver() -> int | None:
    version = ctypes.c_int()
    with suppress(OSError, AttributeError):
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
            return version.value
    return None


def _answer(
    command: Sequence[str], timeout_s: float, check_stop: Callable[[], None], environ: Mapping[str, str] | None = None
) -> Answer:
    """Return the answer of a program. One that hangs in the driver cannot be killed, so it is not waited for."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, env={**os.environ, **(environ or {})}, stdout=pipe, stderr=pipe, text=True)
    except OSError:
        return Answer(None)
    try:
        if written := written_by(process, None, timeout_s, check_stop):
            return Answer(process.returncode, *written)
    finally:
        process.kill()
    with suppress(subprocess.TimeoutExpired):
        return Answer(None, *process.communicate(timeout=_DIES_WITHIN_S))
    return Answer(None)


def main(logical_cpus: int) -> None:
    """Compute on each GPU of this worker, in the steps of `_STEPS`. Print a line of JSON after each one."""
    ignore_signals()
    devices = Devices(Cluster() if logical_cpus else Cluster.from_environ(os.environ), logical_cpus=logical_cpus or None)
    strategy = devices.local.strategy
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    _tell("devices", gpus=len(gpus) or logical_cpus)
    if not gpus and not logical_cpus:
        return
    photos, kernels = tf.ones((2, 16, 16, 3)), tf.ones((3, 3, 3, 4))

    def convolve(photos: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.tanh(tf.nn.conv2d(photos, kernels, strides=1, padding="SAME")))

    def everywhere(jit: bool) -> None:
        compiled = tf.function(convolve, jit_compile=jit, autograph=False)
        strategy.run(compiled, (photos, kernels))

    _try("kernel", lambda: everywhere(False))
    _try("xla", lambda: everywhere(True))
    if strategy.num_replicas_in_sync > 1:
        _try("all_reduce", lambda: _sum_over(strategy))


def _sum_over(strategy: tf.distribute.Strategy) -> None:
    import tensorflow as tf

    def summed() -> tf.Tensor:
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.ones((1024,)))

    sums = strategy.experimental_local_results(tf.function(lambda: strategy.run(summed))())
    assert all(float(one[0]) == strategy.num_replicas_in_sync for one in sums), sums


def _try(step: str, compute: Callable[[], object]) -> None:
    try:
        compute()
    except Exception as error:
        _tell(step, fault=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    else:
        _tell(step)


def _tell(step: str, **more: object) -> None:
    print(json.dumps({"step": step, **more}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
