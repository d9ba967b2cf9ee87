import os
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from job.cli import main
from job.decoding.rules import DecodeRules
from job.errors import JobError
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import ExportConfig, IntakeConfig
from job.sources.open import open_source
from job.stages import export
from job.stages.evaluate import Evaluation
from job.stages.intake import Intake
from job.storage.workdir import Workdir
from tests.conftest import ROOT, quick_settings, run_job
from tests.unit.test_untrusted import ODD


@pytest.mark.parametrize("command", [[], *([name] for name in main.commands)])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom job.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'pydantic', 'pyarrow', 'numpy', 'PIL', 'sklearn'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "Usage:" in done.stdout and "HEAVY []" in done.stdout


def test_every_option_is_documented():
    for command in main.commands.values():
        assert command.help, command.name
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, f"{command.name} {parameter.name}"


def test_exit_codes_of_the_help_are_those_of_the_errors():
    codes = {c.exit_code for c in JobError.__subclasses__()} | {JobError.exit_code}
    for code in codes - {1}:
        assert str(code) in main.help, code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "no such folder"),
        (
            ["--data", "ftp://host/x"],
            "there is no storage for ftp://. Give a local path, or gs://BUCKET/PREFIX, s3://BUCKET",
        ),
        (["--data", "pyproject.toml"], "this is a file"),
        (["--data", "tests", "--set", "backbone.name=resnet51"], "did you mean resnet50? Allowed: convnext_tiny"),
        (["--data", "tests", "--set", "backbone.name=MobileNetV2"], "did you mean mobilenet_v2?"),
        (["--data", "tests", "--weights", "weights.pkl"], "existing file"),
        (["--data", "tests", "--set", "backbone.name=resnet50", "--set", "backbone.alpha=1.0"], "no width multiplier"),
        (["--data", "tests", "--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_clear_line(tmp_path, arguments, said):
    done = run_job("run", "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_report_imports_nothing_heavy():
    code = "import sys, job.stages.report; print({'tensorflow', 'keras', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


HEAVY = {
    *("boto3", "cleanlab", "google.cloud.storage", "keras", "matplotlib", "pandas", "sklearn", "tensorflow", "tf_keras"),
}


def heavy_after(code, *words):
    """The heavy libraries that a new interpreter has loaded after it has run some code."""
    code = f"import atexit, sys; atexit.register(lambda: print(*sorted({HEAVY} & set(sys.modules)))); {code}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_commands_start_without_scipy_and_what_is_as_heavy():
    code = f"import sys, job.api; print({{'scipy', *{HEAVY}}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_explore_imports_no_tensorflow_and_no_pandas(painted, tmp_path):
    words = ["explore", "--data", painted, "--out", tmp_path / "out", *quick_settings()]
    assert heavy_after("from job.__main__ import start; start()", *words) == ["sklearn"]
    assert (tmp_path / "out" / "report.html").exists()


def test_predict_imports_no_keras_and_no_pandas(finished_run, painted, tmp_path):
    words = ["predict", "--model", finished_run, "--data", painted, "--out", tmp_path / "labels.csv"]
    assert heavy_after("from job.__main__ import start; start()", *words) == ["tensorflow"]


KERAS = "from job.cluster.tensorflow import import_tensorflow; import_tensorflow(); import keras"


@pytest.mark.thorough
def test_program_imports_keras_without_what_it_only_would_like_to_have():
    leaves_out = "from job.console.startup import leave_out_optional_imports; leave_out_optional_imports()"
    assert heavy_after(f"{leaves_out}; {KERAS}") == ["keras", "tensorflow"]
    assert heavy_after(f"{leaves_out}; {KERAS}; from cleanlab import filter; import sklearn.tree") == [
        "cleanlab", "keras", "pandas", "sklearn", "tensorflow"
    ]  # fmt: skip
    assert heavy_after(f"{leaves_out}; exec('import pandas', {{}})") == [
        "pandas"
    ]  # Whoever asks without a name may have it.
    assert heavy_after(f"{leaves_out}; from tensorboardX import event_file_writer") == []
    assert heavy_after("from tensorboardX import event_file_writer") == ["boto3", "google.cloud.storage"]
    assert "sklearn" in heavy_after(KERAS)  # In the process of somebody who uses the Python API, Keras stays whole.


@pytest.mark.parametrize(("given", "found"), [({}, "1 1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0 0")])
def test_tensorflow_uses_onednn_on_every_cpu_unless_the_user_has_switched_it_off(given, found):
    code = (
        "import os; from job.cluster.tensorflow import import_tensorflow, onednn; before = onednn(); import_tensorflow(); "
    )
    code += "print(before, os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    environ = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"} | given
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == found.split()


def test_garbage_collector_runs_after_the_import_of_tensorflow_and_not_at_the_end_of_the_program():
    tells = "import atexit, gc; atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 0))"
    for code, said in ((KERAS, "True True"), ("from job.__main__ import start; start()", "True True")):
        done = subprocess.run(
            [sys.executable, "-c", f"{tells}; {code}", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == said


def test_parity_check_runs_the_model_without_tensorflows_python_package(finished_run, painted, tmp_path):
    source, context = open_source(str(painted)), Context(Workdir(finished_run), Telemetry(None))
    entries, taken_in = {entry.path: entry for entry in source.listing().entries}, Intake.load(context)
    rules = DecodeRules.of(IntakeConfig(image_size=48), taken_in.bit_depth)
    code = "import sys; from job.serving import parity; parity.main(); print(*sys.modules, file=open(sys.argv[1], 'w'))"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, tmp_path / "modules"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as checker:
        model, acceptance = (finished_run / "model").resolve(), Evaluation.load(context).acceptance
        found = export._check_parity(
            checker, ExportConfig(), model, rules, acceptance, taken_in.examples, taken_in.images, source, entries, context
        )
    assert found["agrees"] and found["bytes"]["num_photos"] == found["num_photos"] > 5
    assert not {"tensorflow", "keras", "matplotlib"} & set((tmp_path / "modules").read_text().split())


@pytest.mark.parametrize("kind", ["ValueError", "OSError"])
def test_the_trace_of_a_bug_is_escaped(tmp_path, kind):
    code = "import sys; from job.console.log import LOG; sys.excepthook = LOG.bug\n" + f"raise {kind}({ODD!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and b"Traceback" in done.stderr
    assert not set(done.stderr) & {0x1B, 0x07, 0x0D} and rb"\x1b]0;t\x07" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--data", "x"], "No such command 'train'. Did you mean 'run'?"),
        (["run", "--epochs", "5"], "It is a setting: --set fine_tune.epochs=VALUE"),
        (["run", "--image-size", "96"], "It is a setting: --set intake.image_size=VALUE"),
        (["run", "--nonsense", "5"], "No such option"),
    ],
)
def test_words_of_other_programs_are_answered_with_those_of_this_one(words, said):
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and said in done.output


@pytest.mark.parametrize("refused", ["run --data none --out out", "explore --data none --out out", "demo --out gs://b/out"])
def test_first_line_of_a_run_comes_before_all_that_takes_time_to_import(tmp_path, refused):
    command = [sys.executable, "-X", "importtime", "-m", "job", *refused.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False).stderr
    before, _, after = said.partition("Cluster: ")
    for library in ("numpy", "pyarrow", "pydantic"):
        imported = re.compile(rf"\| +{library}$", re.MULTILINE)
        assert imported.search(after) and not imported.search(before), library
