"""The README's commands where only what users install is installed: requirements/cpu.txt, and no package of the tests."""

import ast
import os
import re
import shlex
import subprocess

import pytest

from tests.conftest import ROOT, paint_classes, quick_settings

pytestmark = pytest.mark.thorough
USER = ROOT / ".venv-user" / "bin"
NOBODY = "http://127.0.0.1:9"  # Where nobody answers, as on a node without a network.


@pytest.fixture(scope="module")
def user():
    """Runs a command in the environment of a user, from another folder, and returns the ended process."""
    if not (USER / "transfer-job").exists():
        if os.environ.get("REQUIRE_BEDS"):
            pytest.fail("REQUIRE_BEDS is set and .venv-user is missing: make .venv-user/.done")
        pytest.skip(".venv-user is missing: make .venv-user/.done")

    def run(folder, *words):
        environment = {**os.environ, "PATH": f"{USER}:{os.environ['PATH']}", "HTTPS_PROXY": NOBODY, "HTTP_PROXY": NOBODY}
        command = [str(word) for word in words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def project(tmp_path_factory, user):
    """A folder with photos, a table of them, and a run that has finished."""
    folder = tmp_path_factory.mktemp("project")
    photos = paint_classes(folder / "photos", per_class=20)
    rows = [f"{p.relative_to(photos)},{p.parent.name}" for p in sorted(photos.rglob("*.jpg"))]
    (photos / "labels.csv").write_text("\n".join(["path,label", *rows]))
    done = user(folder, "transfer-job", "run", "--data", "photos/", "--out", "runs/first", *quick_settings())
    assert done.returncode == 0, done.stderr
    return folder


def test_every_import_that_waits_until_it_is_needed_is_installed(user, tmp_path):
    """Packages of extras that are not in the image apart: their absence has a message of its own."""
    extras = ("ai_edge_litert", "huggingface_hub", "mlflow", "onnx", "onnxruntime", "tf2onnx")
    statements = set()
    for file in (ROOT / "job").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            inner = ast.walk(node) if isinstance(node, ast.FunctionDef) else ()
            statements |= {ast.unparse(n) for n in inner if isinstance(n, (ast.Import, ast.ImportFrom))}
    statements = {said for said in statements if re.split(r"[ .]", said)[1] not in extras}
    assert len(statements) > 60
    done = user(tmp_path, USER / "python", "-c", "\n".join(sorted(statements)))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("transfer-job run --data photos/labels.csv --out runs/table --dry-run", "intake     runs"),
        (
            "transfer-job run --data photos/ --labels photos/labels.csv --out runs/table --stop-after explore",
            "files looked at",
        ),
        ("transfer-job explore --data photos/ --out runs/looked-at", "files looked at"),
        ("transfer-job run --data photos/ --out runs/first --dry-run", "skipped"),
        ("transfer-job predict --model runs/first --data photos/ --out predictions.csv", "40 photos labelled"),
        ("transfer-job report runs/first", "Report: "),
        (
            "transfer-job rank --data photos/ --out runs/rank --image-size 48 --backbones mobilenet_v2:alpha=0.35",
            "Recommended",
        ),
        ("transfer-job --help", "Exit codes"),
    ],
)
def test_command_of_the_readme(user, project, command, said):
    words = shlex.split(command)
    settings = quick_settings() if words[1] in ("run", "explore") else ()
    random = ["--weights", "random"] if words[1] == "rank" else []
    done = user(project, *words, *settings, *random)
    assert done.returncode == 0 and said in done.stdout + done.stderr, done.stdout + done.stderr


def test_named_data_set_that_cannot_be_downloaded_is_one_line(user, project):
    done = user(
        project, "transfer-job", "run", "--data", "tfds:oxford_flowers102", "--out", "runs/named", "--tfds-dir", "tfds"
    )
    assert done.returncode in (2, 74) and "Traceback" not in done.stderr, done.stderr
    assert "oxford_flowers102" in done.stderr.split("Error: ")[-1]
