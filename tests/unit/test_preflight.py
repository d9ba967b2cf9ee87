"""What follows from answers about GPUs that other machines gave. No machine of ours has one, so these stand for it."""

import errno
import json
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from job.cluster.environment import Cluster
from job.config import Config
from job.preflight import gpus
from job.preflight.base import Finding, Planned, exit_code
from job.preflight.checks import CHECKS, examine
from job.preflight.gpus import Answer, Seen, judge, judge_trial
from job.runtime.stop import StopRequest

# As tf.sysconfig.get_build_info of tensorflow-cpu and tensorflow 2.21.0 answers.
CPU_BUILD = {"is_cuda_build": False, "is_rocm_build": False, "is_tensorrt_build": False}
GPU_BUILD = {
    "cpu_compiler": "clang",
    "cuda_compute_capabilities": ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"],
    "cuda_version": "12.5.1",
    "cudnn_version": "9",
    "is_cuda_build": True,
    "is_rocm_build": False,
    "is_tensorrt_build": False,
}
# Lines of nvidia-smi: number, UUID, name, driver, compute capability, MiB in all, MiB free.
L4 = "0, GPU-5c1b2f0e-1111-2222-3333-444444444444, NVIDIA L4, 550.90.07, 8.9, 23034, 22565"
L4_IN_USE = "1, GPU-6d2c3a1f-1111-2222-3333-444444444444, NVIDIA L4, 550.90.07, 8.9, 23034, 310"
T4 = "0, GPU-7e3d4b20-1111-2222-3333-444444444444, Tesla T4, 535.183.01, 7.5, 15360, 14913"
A10 = "0, GPU-8f4e5c31-1111-2222-3333-444444444444, NVIDIA A10, 470.82.01, 8.6, 22731, 22400"
H100 = "0, GPU-905f6d42-1111-2222-3333-444444444444, NVIDIA H100 80GB HBM3, 550.54.15, 9.0, 81559, 80996"
RTX_5090 = "0, GPU-a1607e53-1111-2222-3333-444444444444, NVIDIA GeForce RTX 5090, 575.57.08, 12.0, 32607, 31842"
GTX_980 = "0, GPU-b2718f64-1111-2222-3333-444444444444, NVIDIA GeForce GTX 980, 535.183.01, 5.2, 4043, 3990"
SLICED = (
    "0, GPU-c3829075-1111-2222-3333-444444444444, NVIDIA A100-SXM4-80GB, 550.54.15, 8.0, 81920, [Insufficient Permissions]"
)


def seen(
    *lines: str,
    build: Mapping[str, Any] = GPU_BUILD,
    num_devices: int | None = None,
    visible: tuple[str, ...] | None = None,
    cuda: int | None = 12040,
    query: Answer | None = None,
) -> Seen:
    there = len(lines) if num_devices is None else num_devices
    return Seen(build, there, visible, cuda, query or Answer(0, "\n".join(lines)))


def judged(answers: Seen, *, required: bool = False) -> list[Finding]:
    return list(judge(answers, required=required))


@pytest.mark.parametrize("gpu", [L4, T4, A10, H100, SLICED])
def test_gpu_with_kernels_and_a_driver_is_all_right(gpu: str) -> None:
    (found,) = judged(seen(gpu), required=True)
    assert found.level == "ok" and gpu.split(", ")[2] in found.text


def test_machine_without_gpus_computes_on_the_cpu_unless_gpus_are_required() -> None:
    nothing = seen(build=CPU_BUILD, cuda=None, query=Answer(None))
    assert [finding.level for finding in judged(nothing)] == ["ok"]
    (found,) = judged(nothing, required=True)
    assert (found.level, found.exit_code) == ("error", 2)
    assert "--gpus all" in found.text and "--set cluster.require_gpu=false" in found.text


def test_build_for_gpus_without_one_is_told() -> None:
    nothing = seen(cuda=None, query=Answer(None))
    (found,) = judged(nothing)
    assert found.level == "warning" and "no GPU is visible" in found.text and "on the CPU" in found.text
    assert judged(nothing, required=True)[0].exit_code == 2


def test_gpus_that_are_hidden_on_purpose_are_no_warning() -> None:
    hidden = seen(num_devices=0, visible=(), query=Answer(None))
    assert [finding.level for finding in judged(hidden)] == ["ok"]
    assert "CUDA_VISIBLE_DEVICES lists none" in judged(hidden, required=True)[0].text


def test_gpus_that_the_build_for_cpus_cannot_use_are_told() -> None:
    (found,) = judged(seen(L4, build=CPU_BUILD))
    assert found.level == "warning" and "the build for CPUs" in found.text and "VARIANT=gpu" in found.text
    assert judged(seen(L4, build=CPU_BUILD), required=True)[0].exit_code == 2


def test_container_without_the_library_of_the_driver_is_told() -> None:
    (found,) = judged(seen(num_devices=1, cuda=None, query=Answer(None)), required=True)
    assert found.exit_code == 2 and "libcuda.so.1" in found.text and "NVIDIA_DRIVER_CAPABILITIES" in found.text


def test_driver_that_is_too_old_for_the_cuda_of_the_wheels_is_told_with_the_one_to_install() -> None:
    _, found = judged(seen(A10, cuda=11040))
    assert found.level == "warning" and "supports CUDA 11.4" in found.text and "driver 525 or newer" in found.text


def test_gpu_that_is_newer_than_all_kernels_is_told_with_what_to_do() -> None:
    _, found = judged(seen(RTX_5090, cuda=12090))
    assert found.level == "warning"
    assert "no kernels for the compute capability 12.0 of NVIDIA GeForce RTX 5090" in found.text
    assert "only for 6.0, 7.0, 8.0, 8.9, 9.0" in found.text and "nvcr.io" in found.text


def test_gpu_that_is_older_than_all_kernels_is_told() -> None:
    _, found = judged(seen(GTX_980))
    assert "compute capability 5.2" in found.text and "TensorFlow ignores this GPU" in found.text


def test_kernels_of_another_major_version_do_not_count() -> None:
    build = GPU_BUILD | {"cuda_compute_capabilities": ["sm_80", "sm_120a"]}
    assert len(judged(seen(L4, build=build))) == 1
    assert len(judged(seen(RTX_5090, build=build))) == 1
    assert len(judged(seen(H100, build=build))) == 2


def test_gpu_that_another_process_uses_is_told_unless_it_is_not_ours() -> None:
    _, found = judged(seen(L4, L4_IN_USE))
    assert found.level == "warning" and found.text.startswith("GPU 1 has 310 of 23,034 MiB free")
    assert len(judged(seen(L4, L4_IN_USE, num_devices=1, visible=("0",)))) == 1
    assert len(judged(seen(L4, L4_IN_USE, num_devices=1, visible=("GPU-6d2c3a1f",)))) == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
        (18, "Failed to initialize NVML: Driver/library version mismatch"),
        (255, "Failed to initialize NVML: Unknown Error"),
        (
            15,
            "Unable to determine the device handle for GPU0000:4F:00.0: GPU is lost. Reboot the system to recover this GPU",
        ),
    ],
)
def test_failure_of_nvidia_smi_is_passed_on(code: int, said: str) -> None:
    found = judged(seen(num_devices=1, query=Answer(code, said + "\n")))
    assert [finding.level for finding in found] == ["ok", "warning"] and said in found[1].text


def told(*steps: str, gpus: int = 1, **faults: str) -> str:
    lines = [{"step": step} | ({"fault": faults[step]} if step in faults else {}) for step in steps]
    return "\n".join(map(json.dumps, [{"step": "devices", "gpus": gpus}, *lines]))


def tried(trial: Answer, gpu: str = L4, *, required: bool = False) -> list[Finding]:
    return list(judge_trial(seen(gpu), trial, required=required))


def test_trial_that_works_is_all_right() -> None:
    (found,) = tried(Answer(0, told("kernel", "xla", "all_reduce", gpus=2)))
    assert found.level == "ok" and "all_reduce" in found.text and "2 GPUs" in found.text
    assert [finding.level for finding in tried(Answer(0, told("kernel", "xla")))] == ["ok"]


INVALID = (
    "InternalError: {{function_node __wrapped__Tanh_device_/job:localhost/replica:0/task:0/device:GPU:0}} "
    "'cuLaunchKernel(function, gridX, gridY, gridZ, blockX, blockY, blockZ, 0, reinterpret_cast<CUstream>(stream), params, "
    "nullptr)' failed with 'CUDA_ERROR_INVALID_HANDLE'"
)


@pytest.mark.parametrize(
    ("trial", "code", "said"),
    [
        (Answer(0, told("kernel", "xla", kernel=INVALID)), 2, "CUDA_ERROR_INVALID_HANDLE"),
        (Answer(0, told("kernel", "xla", "all_reduce", gpus=2, all_reduce="InternalError: NCCL error")), 2, "NCCL error"),
        (Answer(0, told("kernel", "xla", kernel="ResourceExhaustedError: OOM when allocating tensor")), 75, "try again"),
        (Answer(1, "", "InternalError: cudaSetDevice() on GPU:0 failed. Status: out of memory"), 75, "out of memory"),
        (Answer(-11, told("kernel")), 2, "XLA"),
        (Answer(-6, told()), 2, "the process ended with -6"),
        (Answer(None, told("kernel", "xla", gpus=2)), 75, "no answer for 300 s"),
        (Answer(None), 75, "no answer for 300 s"),
    ],
)
def test_trial_that_fails_says_where_and_whether_to_try_again(trial: Answer, code: int, said: str) -> None:
    found = tried(trial)
    if code == 2 and said == "XLA":  # A run does not need it on GPUs.
        assert [finding.level for finding in found] == ["warning"] and said in found[0].text
    else:
        assert exit_code(found) == code and said in found[-1].text


def test_xla_that_fails_alone_only_warns() -> None:
    fault = "InternalError: libdevice not found at ./libdevice.10.bc"
    (found,) = tried(Answer(0, told("kernel", "xla", xla=fault)))
    assert found.level == "warning" and fault in found.text


def test_driver_that_may_be_compiling_is_not_taken_for_one_that_hangs() -> None:
    (found,) = tried(Answer(None, told()), RTX_5090)
    assert (found.level, found.exit_code) == ("warning", 0)


def test_gpus_that_tensorflow_does_not_find_are_told_with_its_reason() -> None:
    err = (
        "I0000 gpu_device.cc:2341] Cannot dlopen some GPU libraries. Please make sure the missing libraries are installed\n"
    )
    trial = Answer(0, told(gpus=0), err + "Skipping registering GPU devices...\n")
    (found,) = tried(trial)
    assert found.level == "warning" and "Cannot dlopen some GPU libraries" in found.text
    assert [finding.exit_code for finding in tried(trial, required=True)] == [2]


def test_gpus_are_tried_unless_this_process_may_have_taken_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "look", lambda *_: seen(L4))
    monkeypatch.setattr(gpus, "attempt", lambda *_: Answer(0, told("kernel", "xla", kernel=INVALID)))
    (check,) = (check for check in CHECKS if check.name == "gpus")
    run = Planned(Config(), Cluster(num_gpus=1), StopRequest(), pytest.fail, pytest.fail)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    assert [finding.exit_code for finding in check.look(run)] == [0, 2]
    with monkeypatch.context() as notebook:
        notebook.setitem(sys.modules, "tensorflow", pytest)
        assert [finding.exit_code for finding in check.look(run)] == [0]


@pytest.mark.parametrize(("codes", "ends_with"), [([0, 0], 0), ([0, 75], 75), ([74], 75), ([75, 2], 2), ([65], 2)])
def test_doctor_ends_with_75_only_if_waiting_may_help(codes: list[int], ends_with: int) -> None:
    assert exit_code([Finding("error" if code else "ok", "", code) for code in codes]) == ends_with


def test_error_of_the_system_without_a_name_of_a_file_is_told_without_one() -> None:
    def broken() -> Any:
        raise OSError(errno.EIO, "Input/output error")

    found = next(examine(Planned(Config(), Cluster(), StopRequest(), broken, broken)))
    assert (found.check, found.level, found.exit_code) == ("data", "error", 74)
    assert found.text.startswith("Reading or writing a file failed (Input/output error)")
