"""The workers of k8s/ as processes on this machine: `pods.py` does what a cluster would do with their pods."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job.config import Config, as_toml
from tests.clouds.fixtures import GoogleBed
from tests.conftest import QUICK, paint_classes
from tests.launch import pods
from tests.launch.pods import Pods
from tests.launch.rendered import Rendered, edit, manifests, render, use_buckets


@pytest.fixture
def networks() -> Iterator[list[str]]:
    with pods.networks() as names:
        yield names


@pytest.fixture
def two_pods(kubectl: str, k8s: Path, networks: list[str], tmp_path: Path) -> Pods:
    """Two workers on drawn pictures in a claim, with another claim for the results, and a run.toml for a run of seconds."""
    return pods_of("multi-worker", kubectl, k8s, networks, tmp_path)


def pods_of(overlay: str, kubectl: str, k8s: Path, networks: list[str], folder: Path) -> Pods:
    make_quick(k8s)
    made = Pods(Rendered(manifests(render(kubectl, k8s / "overlays" / overlay))), networks, folder)
    paint_classes(made.at["/data"])
    return made


def make_quick(k8s: Path) -> None:
    """Write settings for a run of seconds on this machine, which has no GPU."""
    (k8s / "base/run.toml").write_text(as_toml(Config.load(None, QUICK)))
    edit(k8s / "overlays/single-gpu/kustomization.yaml", "cluster.require_gpu=true", "cluster.require_gpu=false")


def test_two_pods_find_each_other_and_finish_the_run(two_pods: Pods) -> None:
    assert two_pods.run() == {0: [0], 1: [0]}, two_pods.logs()
    for k in (0, 1):
        assert "2 workers" in two_pods.log(k).splitlines()[0]
    assert {"report.html", "metrics.json", "model"} <= {path.name for path in (two_pods.at["/out"] / "run").iterdir()}


def test_after_a_pod_is_lost_all_come_again_and_finish_the_run(two_pods: Pods) -> None:
    split = two_pods.at["/out"] / "run/stages/split.json"
    exits = two_pods.run(lose_one_when(split.exists))
    assert_all_came_again(two_pods, exits)
    assert (two_pods.at["/out"] / "run/report.html").exists()


@pytest.mark.parametrize("overlay", ["jobset", "trainjob"])
def test_after_a_pod_of_a_job_set_is_lost_all_start_again_at_once_and_finish_the_run(
    overlay: str, kubectl: str, k8s: Path, networks: list[str], tmp_path: Path
) -> None:
    made = pods_of(overlay, kubectl, k8s, networks, tmp_path)
    split = made.at["/out"] / "run/stages/split.json"
    exits = made.run(lose_one_when(split.exists))
    assert exits[1] == [137, 0] and exits[0] in ([75, 0], [143, 0]), made.logs()
    assert "Cluster: Kubernetes Job transfer-job-node-0: pod 0 of 2" in made.log(0)
    assert "intake    skipped: unchanged" in made.log(0)
    assert (made.at["/out"] / "run/report.html").exists()


@pytest.fixture
def bucket(google: GoogleBed, tmp_path: Path) -> str:
    """Drawn pictures below `photos`."""
    uri = google.bucket()
    google.put_folder(paint_classes(tmp_path / "photos"), f"{uri}/photos")
    return uri


@pytest.fixture
def two_pods_on_a_bucket(
    kubectl: str, k8s: Path, networks: list[str], google: GoogleBed, bucket: str, tmp_path: Path
) -> Iterator[Pods]:
    """The same with photos and results in a bucket, and no volume that outlives a pod."""
    make_quick(k8s)
    use_buckets(k8s, "data", "out")
    edit(k8s / "components/data-bucket/job.yaml", "gs://my-photos/flowers", f"{bucket}/photos")
    edit(k8s / "components/out-bucket/job.yaml", "gs://my-results/runs/first", f"{bucket}/run")
    rendered = Rendered(manifests(render(kubectl, k8s / "overlays/multi-worker")))
    with pods.reaching(google.url, networks):
        yield Pods(rendered, networks, tmp_path, **google.environment)


def test_after_a_pod_is_lost_new_ones_with_empty_disks_go_on_from_the_bucket(
    two_pods_on_a_bucket: Pods, google: GoogleBed, bucket: str
) -> None:
    made, split = two_pods_on_a_bucket, f"{bucket}/run/stages/split.json"
    assert made.at.keys() == {"/etc/transfer-job"}  # Nothing but the bucket is between them.
    exits = made.run(lose_one_when(lambda: split in google.names(split)))
    assert_all_came_again(made, exits)
    assert "intake    skipped: unchanged" in made.log(0)
    names = {name.removeprefix(f"{bucket}/run/").partition("/")[0] for name in google.names(f"{bucket}/run/")}
    assert {"report.html", "metrics.json", "model", "examples.parquet"} <= names


def lose_one_when(has_come_so_far: Callable[[], bool]) -> Callable[[Pods], None]:
    lost: list[int] = []

    def meanwhile(made: Pods) -> None:
        if not lost and 1 in made.running and has_come_so_far():
            made.lose(1)
            lost.append(1)

    return meanwhile


def assert_all_came_again(made: Pods, exits: dict[int, list[int]]) -> None:
    assert exits[1][0] == 137
    assert exits[0][0] == 75, made.logs()
    assert {code for codes in exits.values() for code in codes[1:-1]} <= {75}, made.logs()  # It came before the other left.
    assert [codes[-1] for codes in exits.values()] == [0, 0]
