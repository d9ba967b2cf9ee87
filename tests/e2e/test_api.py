"""The job as a library: the example of docs/python.md, and what a library must not do."""

import re
import shutil
import subprocess
import sys

import pytest

import job
from job.config import Config
from job.errors import Diverged
from job.pipeline.records import read_run, write_run
from job.ranking import rank
from job.sections import CacheConfig
from job.storage.workdir import Workdir
from tests.conftest import QUICK, ROOT, paint_classes

SETTINGS = {name: value for name, _, value in (setting.partition("=") for setting in QUICK)}


def run_script(folder, text, **environment):
    """A plain script, without a guard for its main module."""
    (folder / "script.py").write_text(text)
    command = [sys.executable, "script.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    paint_classes(folder / "photos", per_class=20)
    return folder


def test_example_of_the_page_runs_as_a_plain_script(project):
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)[1]
    settings = '"backbone.weights": "random", "intake.image_size": 48, "augment.views": 2, "fine_tune.epochs": 2'
    quick = example.replace('"intake.image_size": 160, "fine_tune.epochs": 10', settings)
    assert quick != example
    done = run_script(project, quick)
    assert done.returncode == 0, done.stderr
    assert re.match(r"Accuracy \d+\.\d%", done.stdout)
    assert "['path', 'label', 'probability', 'familiarity', 'accepted', 'top_3', 'error']" in done.stdout
    assert done.stderr.count("intake    runs") == 1, "the script ran once"
    again = run_script(project, quick.partition("near = ")[0])
    assert again.returncode == 0 and " runs\n" not in again.stderr and again.stdout == done.stdout, again.stderr


def test_import_is_quick_and_loads_nothing_heavy(project):
    code = (
        "import sys, job; heavy = {'tensorflow', 'keras', 'pydantic', 'pyarrow', 'numpy', 'PIL'} & set(sys.modules)\n"
        "print(sorted(heavy), job.Config.__name__, sorted(set(job.__all__) - set(dir(job)))[:1])"
    )
    done = run_script(project, code)
    assert done.stdout.startswith("[] Config"), done.stderr


def test_plan_and_errors_in_process(project, tmp_path):
    steps = job.plan(project / "photos", tmp_path / "out", config={"backbone": {"weights": "random"}})
    assert [step.stage for step in steps][:2] == ["intake", "split"] and all(step.runs for step in steps)
    assert not (tmp_path / "out").exists()
    with pytest.raises(job.UsageError, match="no such folder"):
        job.run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(job.UsageError, match=r"fine_tune.epochs: got 'many'"):
        job.run(project / "photos", tmp_path / "out", config={"fine_tune.epochs": "many"})
    with pytest.raises(job.UsageError, match=r"stop_after 'trian': there is no such stage. Give one of intake, split,"):
        job.run(project / "photos", tmp_path / "out", stop_after="trian")
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        _ = job.walk


def test_explore_gives_the_page_and_the_table_and_leaves_the_process_as_it_is(project, tmp_path):
    code = (
        "import os, signal, sys\n"
        "import job\n"
        "names = [s for s in signal.Signals if s not in (signal.SIGKILL, signal.SIGSTOP)]\n"
        "import sklearn  # It sets two variables of its own.\n"
        "before = [signal.getsignal(s) for s in names], dict(os.environ), sys.stdout, sys.stderr, os.getpid()\n"
        f"result = job.explore('photos', {str(tmp_path / 'out')!r}, config={{'intake.image_size': 48}})\n"
        "after = [signal.getsignal(s) for s in names], dict(os.environ), sys.stdout, sys.stderr, os.getpid()\n"
        "assert before == after\n"
        "assert result.report.exists() and result.examples.num_rows == 40, result.examples\n"
        "assert result.metrics is None and result.model is None and 'tensorflow' not in sys.modules\n"
        "print('still here')"
    )
    done = run_script(project, code)
    assert done.stdout == "still here\n", done.stderr


def test_schedulers_variables_and_signals_are_for_the_command_line(project, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "not JSON")
    steps = job.plan(project / "photos", tmp_path / "out", config={"backbone.weights": "random"})
    assert steps[0].runs
    result = job.explore(project / "photos", tmp_path / "out", config=job.Config.load(None, ["intake.image_size=48"]))
    assert "job.explore" not in str(result.lines) and result.report.exists()


def test_rank_recommends_a_configuration_that_run_takes(project, tmp_path):
    ranking = job.rank(
        project / "photos",
        tmp_path / "rank",
        ["mobilenet_v2:alpha=0.35", "mobilenet_v2:alpha=0.5"],
        image_sizes=[48],
        config={"backbone.weights": "random"},
    )
    assert len(ranking.rows) == 2 and ranking.plot.exists()
    assert ranking.recommended.backbone.name == "mobilenet_v2" and ranking.recommended.intake.image_size == 48
    steps = job.plan(project / "photos", tmp_path / "out", config=ranking.recommended)
    assert steps[-1].stage == "report"


@pytest.mark.thorough
def test_candidate_that_diverges_while_it_is_fine_tuned_is_left_out_of_the_ranking(project, tmp_path, monkeypatch):
    real = rank.fine_tune

    def diverges_once(of_candidate):
        if of_candidate.config.backbone.alpha == 0.35:
            raise Diverged("The loss is not finite.")
        real(of_candidate)

    monkeypatch.setattr(rank, "fine_tune", diverges_once)
    backbones = ["mobilenet_v2:alpha=0.35:image_size=48", "mobilenet_v2:alpha=0.5:image_size=48"]
    settings = {"backbone.weights": "random", "fine_tune.epochs": 1, "augment.views": 1}
    ranking = job.rank(project / "photos", tmp_path / "rank", backbones, config=settings, fine_tune=True)
    assert ranking.recommended.backbone.alpha == 0.5
    assert "mobilenet_v2 0.35 at 48 px is not ranked: The loss is not finite." in "\n".join(ranking.lines)


def test_page_of_a_run_that_is_older_than_a_setting_is_written_again(finished_run, tmp_path):
    out = shutil.copytree(finished_run, tmp_path / "out", symlinks=True)
    described = read_run(Workdir(out))
    del described["config"]["evaluate"]["metric"]
    write_run(Workdir(out), described)
    assert "Results" in job.report(out).report.read_text()


@pytest.mark.parametrize("mistake", [{"data": ""}, {"out": ""}, {"labels": ""}, {"config": {"cache.dir": ""}}])
def test_empty_paths_are_refused(project, mistake):
    with pytest.raises(job.UsageError, match="the path is empty"):
        job.explore(**{"data": project / "photos", "out": project / "none", **mistake})


def test_empty_path_in_a_configuration_made_in_python_is_refused(project):
    config = Config(cache=CacheConfig(dir=""))
    with pytest.raises(job.UsageError, match=r"cache\.dir: the path is empty"):
        job.explore(project / "photos", project / "none", config=config)
