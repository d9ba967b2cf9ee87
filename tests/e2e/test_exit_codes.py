"""Exit codes tell the truth: a row for each mistake and failure, through the real command line.

All rows share one folder, `scene`, with everything in it that can be wrong, and none of them changes it. Rows about
permissions run as a root who has lost the power to pass them.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import pytest

from job.storage.files import remove_tree
from tests.conftest import PROGRAM, paint_classes, run_job

SOMEBODY = 10_001
# Root for whom permissions count, as for everybody else. Another user may not be let to this Python.
POWERLESS = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner"]
CARD = {
    "class_names": ["a", "b"],
    "image_size": 48,
    "resize": "squash",
    "decoder": {"max_pixels": 10**8, "min_side_px": 1, "max_aspect_ratio": 50.0},
    "sha256": {},
}


def _weights(folder):
    folder.mkdir()
    with h5py.File(folder / "external.weights.h5", "w") as file:
        file["layers"] = h5py.ExternalLink("other.h5", "/layers")
    with h5py.File(folder / "loop.weights.h5", "w") as file:
        file["layers"] = h5py.SoftLink("/layers")
    with h5py.File(folder / "elsewhere.weights.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", (4,), "f4", external=[("/etc/passwd", 0, 16)])
    with h5py.File(folder / "small.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = [1.0]
    whole = (folder / "small.weights.h5").read_bytes()
    (folder / "cut.weights.h5").write_bytes(whole[: len(whole) // 2])


def _models(folder):
    for name, text in {"list": "[]", "object": "{}", "graphless": json.dumps(CARD)}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "model.json").write_text(text)
    (folder / "pipe").mkdir()
    os.mkfifo(folder / "pipe" / "model.json")


def _closed(scene):
    """What only root may look into."""
    for name in (
        "closed",
        "above/photos",
        "locked-class/checks",
        "locked-split/train",
        "labels.csv",
        "closed.toml",
        "sealed",
    ):
        (scene / name).chmod(0o000)
    (scene / "above").chmod(0o000)
    (scene / "entered-by-nobody").chmod(0o444)
    os.chown(scene / "theirs", SOMEBODY, SOMEBODY)


@pytest.fixture(scope="module")
def scene():
    """A folder for the rows; not below pytest's own, into which only root may look."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder)
        photos = paint_classes(scene / "photos", per_class=6)
        for copy in (
            "above/photos",
            "closed",
            "locked-class",
            "entered-by-nobody",
            "locked-split/train",
            "locked-split/val",
        ):
            shutil.copytree(photos, scene / copy)
        (scene / "numbered").mkdir()
        (scene / "numbered" / "photo-1.jpg").touch()
        for name in ("theirs", "home", "sealed"):
            (scene / name).mkdir()
        for name in ("labels.csv", "open.csv"):
            (scene / name).write_text("path,label\nstripes/stripes-000.jpg,a\n")
        (scene / "closed.toml").touch()
        (scene / "deep.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
        (scene / "deep-tables.toml").write_text("[" + ".".join("a" * 5000) + "]")
        os.mkfifo(scene / "pipe.toml")
        (scene / "loop").symlink_to("loop")
        _weights(scene / "weights")
        _models(scene / "models")
        scene.chmod(0o1777)
        _closed(scene)
        yield scene


def start(scene, command, *, powerless=False, shell="", **environment):
    """Run a command of the program, or a whole line of a shell in which `transfer-job` is the program."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON", "TF_CONFIG"))}
    if powerless and os.geteuid() != 0:
        pytest.skip("only root can make files of others")
    line = f'transfer-job() {{ {shlex.quote(str(PROGRAM))} "$@"; }}\n{shell or f"transfer-job {command}"}'
    return subprocess.run(
        [*(POWERLESS if powerless else []), "bash", "-c", line],
        cwd=scene,
        env={**clean, "HOME": str(scene / "home"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def assert_ends(done, code, said):
    assert done.returncode == code, (done.returncode, done.stderr)
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


WHO = r"user root \(0\) \(groups [\d, ]+\) may not read "
ROOTS = r"which belongs to user root \(0\), group 0, and has mode "
THEIRS = rf"which belongs to user {SOMEBODY}, group {SOMEBODY}, and has mode 0755"
PERMISSIONS = [
    ("--data unreadable", "explore --data closed --out {out}", 2, f"{WHO}.*/closed, {ROOTS}0000"),
    ("a folder above --data locked", "explore --data above/photos --out {out}", 2, f"{WHO}.*/above, {ROOTS}0000"),
    (
        "--data listable, but not to be entered",
        "explore --data entered-by-nobody --out {out}",
        2,
        f"{WHO}.*nobody, {ROOTS}0444",
    ),
    ("a split folder unreadable", "explore --data locked-split --out {out}", 2, f"{WHO}.*/train, {ROOTS}0000"),
    (
        "one class folder unreadable",
        "explore --data locked-class --out {out}",
        65,
        "checks: no usable photos .*Permission denied",
    ),
    ("--labels unreadable", "explore --data photos --labels labels.csv --out {out}", 2, f"{WHO}.*/labels.csv, {ROOTS}0000"),
    ("--data a table, unreadable", "explore --data labels.csv --out {out}", 2, f"{WHO}.*/labels.csv, {ROOTS}0000"),
    (
        "--labels of a closed folder",
        "explore --data closed --labels open.csv --out {out}",
        2,
        f"{WHO}.*/closed, {ROOTS}0000",
    ),
    (
        "--config unreadable",
        "explore --data photos --config closed.toml --out {out}",
        2,
        f"{WHO}.*/closed.toml, {ROOTS}0000",
    ),
    ("--out below a locked folder", "explore --data photos --out sealed/runs/first", 2, f"may not .*/sealed, {ROOTS}0000"),
    ("--out not writable", "explore --data photos --out theirs", 2, f"may not write to .*/theirs, {THEIRS}"),
    (
        "--out below one not writable",
        "explore --data photos --out theirs/a/b",
        2,
        f"may not write to .*/theirs, {THEIRS}",
    ),
    (
        "cache.dir not writable",
        "explore --data photos --out {out} --set cache.dir=theirs/c",
        2,
        f"write to .*/theirs, {THEIRS}",
    ),
    (
        "predict on an unreadable folder",
        "predict --model models/graphless --data closed --out {out}.csv",
        2,
        f"{WHO}.*/closed",
    ),
    ("predict with a closed model", "predict --model closed --data photos --out {out}.csv", 2, f"{WHO}.*/closed"),
]


@pytest.mark.parametrize(("command", "code", "said"), [row[1:] for row in PERMISSIONS], ids=[row[0] for row in PERMISSIONS])
def test_who_may_not_read_or_write_what_is_said(scene, request, command, code, said):
    out = f"out-{abs(hash(request.node.name))}"
    assert_ends(start(scene, command.format(out=out), powerless=True), code, said)


LONG_NUMBER = "9" * 5000  # Python makes no number of text as long as this.
TF_CONFIG_OF_LONG_PORT = {"TF_CONFIG": json.dumps({"cluster": {"worker": [f"a:{LONG_NUMBER}"]}})}
STEP = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "5", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP |= {"SLURM_STEP_NODELIST": "n1,n2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
EMPTY = "the path is empty. Is a variable of your script unset"
NO_HOME = "~nobody-of-this-name stands for a home folder, and there is none"
MISTAKES = [
    ("--data empty", "explore --data '' --out none", {}, f"--data: {EMPTY}"),
    ("--out empty", "explore --data photos --out ''", {}, f"--out: {EMPTY}"),
    ("--labels empty", "explore --data photos --labels '' --out none", {}, f"--labels: {EMPTY}"),
    ("--config empty", "explore --data photos --config '' --out none", {}, f"--config: {EMPTY}"),
    ("--weights empty", "run --data photos --weights '' --out none", {}, f"--weights: {EMPTY}"),
    (
        "--config in a bucket",
        "explore --data photos --out none --config gs://b/x",
        {},
        "gs://b/x: this must be a file on this",
    ),
    ("--out with one slash", "explore --data photos --out gs:/b/run", {}, "--out gs:/b/run: .*Write gs://b/run, or ./gs:/b"),
    ("--data without slashes", "explore --data s3:b/run --out none", {}, "--data s3:b/run: .*Write s3://b/run, or ./s3:b"),
    ("cache.dir empty", "explore --data photos --out none --set cache.dir=", {}, f"cache.dir: {EMPTY}"),
    ("report of nothing", "report ''", {}, f"directory: {EMPTY}"),
    ("demo --out empty", "demo --out ''", {}, f"--out: {EMPTY}"),
    ("predict --model empty", "predict --model '' --data photos --out a.csv", {}, f"--model: {EMPTY}"),
    ("predict --out empty", "predict --model models/list --data photos --out ''", {}, f"--out: {EMPTY}"),
    ("--out in the home of nobody", "explore --data photos --out '~nobody-of-this-name/x'", {}, f"--out .*{NO_HOME}"),
    ("cache.dir there", "explore --data photos --out none --set 'cache.dir=~nobody-of-this-name'", {}, f"dir .*{NO_HOME}"),
    (
        "weights of rank there",
        "rank --data photos --out none --backbones 'mobilenet_v2:weights=~nobody-of-this-name/w.h5'",
        {},
        NO_HOME,
    ),
    ("--out not UTF-8", r"explore --data photos --out $'caf\xe9/out'", {}, "--out .*not UTF-8"),
    ("cache.dir not UTF-8", r"explore --data photos --out none --set $'cache.dir=caf\xe9'", {}, "cache.dir .*not UTF-8"),
    ("--out /proc", "explore --data photos --out /proc", {}, "holds files that this job did not make"),
    ("cache.dir no folder", "explore --data photos --out none --set cache.dir=/dev/null", {}, "dev/null: .* is a file"),
    (
        "predict --out where nothing can be made",
        "predict --model models/graphless --data photos --out /proc/x.csv",
        {},
        "does not allow new files",
    ),
    (
        "a long --image-size",
        f"rank --data photos --out none --backbones vgg16 --image-size {LONG_NUMBER}",
        {},
        "not a number",
    ),
    (
        "a long image_size of a backbone",
        f"rank --data photos --out none --backbones vgg16:image_size={LONG_NUMBER}",
        {},
        "not a number",
    ),
    ("job number a pattern", "explore --data photos --out numbered", {"SLURM_JOB_ID": ".*"}, "not make: photo-1.jpg"),
    ("job number half a pattern", "explore --data photos --out numbered", {"SLURM_JOB_ID": "("}, "not make: photo-1.jpg"),
    ("job number 1", "explore --data photos --out numbered", {"SLURM_JOB_ID": "1"}, "not make: photo-1.jpg"),
    (
        "hosts without end",
        "run --data photos --out none",
        {**STEP, "SLURM_STEP_NODELIST": "n[1-99999999999999]"},
        "more than 10,000 workers",
    ),
    (
        "hosts times hosts",
        "run --data photos --out none",
        {**STEP, "SLURM_STEP_NODELIST": "n[1-9999]x[1-9999]"},
        "more than 10,000 workers",
    ),
    (
        "tasks without end",
        "run --data photos --out none",
        {**STEP, "SLURM_STEP_TASKS_PER_NODE": "1(x99999999999)"},
        "more than 10,000 workers",
    ),
    (
        "tasks without end on one node",
        "run --data photos --out none",
        {**STEP, "SLURM_STEP_TASKS_PER_NODE": "99999999999"},
        "more than 10,000 workers",
    ),
    (
        "pods without end",
        "run --data photos --out none",
        {"JOB_COMPLETION_INDEX": "0", "CLUSTER_NUM_WORKERS": "99999999"},
        "more than 10,000 workers",
    ),
    ("--out a link that leads to itself", "explore --data photos --out loop", {}, "a link that leads back to itself"),
    ("--data a link that leads to itself", "explore --data loop --out none", {}, "a link that leads back to itself"),
    ("TOML nested 5,000 deep", "explore --data photos --out none --config deep.toml", {}, "nested too deep"),
    (
        "TOML tables nested 5,000 deep",
        "explore --data photos --out none --config deep-tables.toml",
        {},
        "deep-tables.toml|no such",
    ),
    ("--set nested 5,000 deep", f"explore --data photos --out none --set seed={'[' * 5000}", {}, "seed"),
    ("a pipe as --config", "explore --data photos --out none --config pipe.toml", {}, "not a regular file"),
    ("a name that is too long", f"explore --data photos --out {'x' * 300}", {}, "name is too long"),
    ("--out where nothing can be made", "explore --data photos --out /proc/nowhere", {}, "does not allow new files"),
    ("--out below a file", "explore --data photos --out open.csv/out", {}, "is a file and not a folder"),
    ("SLURM_STEP_NUM_TASKS alone", "run --data photos --out none", {"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_JOB_ID is not"),
    (
        "SLURM_JOB_ID no number",
        "run --data photos --out none",
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "x"},
        "not a number",
    ),
    ("TF_CONFIG empty", "run --data photos --out none", {"TF_CONFIG": ""}, "TF_CONFIG is empty"),
    ("TF_CONFIG empty, and a dry run", "run --dry-run --data photos --out none", {"TF_CONFIG": ""}, "TF_CONFIG is empty"),
    ("TF_CONFIG with a long port", "run --data photos --out none", TF_CONFIG_OF_LONG_PORT, "is not HOST:PORT with a port"),
    ("TF_CONFIG nested", "run --data photos --out none", {"TF_CONFIG": "[" * 100_000}, "TF_CONFIG cannot be read"),
    (
        "{index} outside of an Indexed Job",
        "run --data photos --out none/{{index}}",
        {},
        "JOB_COMPLETION_INDEX, which is not set",
    ),
    ("a pod without a number", "run --data photos --out none", {"JOB_COMPLETION_INDEX": "first"}, "not a number"),
    ("model.json a pipe", "predict --model models/pipe --data photos --out a.csv", {}, "no model.json in it"),
    ("model.json a list", "predict --model models/list --data photos --out a.csv", {}, "not from this job"),
    ("model.json an empty object", "predict --model models/object --data photos --out a.csv", {}, "not from this job"),
]


@pytest.mark.parametrize(("command", "environ", "said"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_mistake_ends_with_2_and_one_line(scene, tmp_path, command, environ, said):
    done = start(scene, command.format(out=tmp_path / "out"), **environ)
    assert_ends(done, 2, said)
    assert "intake    runs" not in done.stderr and not (scene / "none").exists()


WEIGHTS = [
    ("external", "layers in it is a link"),
    ("loop", "layers in it is a link"),
    ("elsewhere", "lies in another file"),
    ("cut", "no file of Keras weights"),
    ("small", "layer .* has weights of"),
]


@pytest.mark.parametrize(("name", "said"), WEIGHTS, ids=[row[0] for row in WEIGHTS])
def test_weights_that_cannot_be_used_end_with_2_and_one_line(scene, tmp_path, name, said):
    weights = scene / "weights" / f"{name}.weights.h5"
    done = run_job("run", "--data", scene / "photos", "--out", tmp_path / "out", "--weights", weights)
    assert_ends(done, 2, said)
    assert "intake    runs" not in done.stderr


def test_model_without_a_graph_ends_with_2_and_one_line(scene, tmp_path):
    model = scene / "models" / "graphless"
    done = run_job("predict", "--model", model, "--data", scene / "photos", "--out", tmp_path / "a.csv")
    assert_ends(done, 2, "cannot load its graph")


def test_deleted_current_folder_ends_with_2(scene):
    done = start(scene, "", shell="mkdir gone && cd gone && rmdir ../gone && transfer-job explore --data /tmp --out out")
    assert_ends(done, 2, "current folder was deleted")


@pytest.mark.parametrize("limit", ["-v 300000", "-v 1000000", "-d 100000", "-d 500000", "-n 10", "-n 20"])
def test_limit_in_which_no_run_can_finish_ends_with_2(scene, tmp_path, limit):
    line = f"ulimit {limit}; transfer-job run --data photos --out {tmp_path / 'out'}"
    assert_ends(start(scene, "", shell=line), 2, f"ulimit {limit[:2]}")


DRY = "transfer-job run --dry-run --data photos --out {out} --weights random --stop-after split"
STREAMS = [
    ("standard error closed", f"{DRY} 2>&-", 0, ""),
    ("all streams closed", f"{DRY} 0<&- 1>&- 2>&-", 0, ""),
    ("standard error closed, and a mistake", "transfer-job run --data nowhere --out none 2>&-", 2, ""),
    ("nobody reads what is printed", f"{DRY} | head -c 0; exit ${{{{PIPESTATUS[0]}}}}", 0, ""),
    ("standard output on a full disk", f"{DRY} > /dev/full", 74, r"Standard output \(/dev/full\): No space left on device"),
    ("standard error on a full disk", f"{DRY} 2> /dev/full", 0, ""),
]


@pytest.mark.parametrize(("line", "code", "said"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS])
def test_standard_streams_decide_no_more_than_they_must(scene, tmp_path, line, code, said):
    assert_ends(start(scene, "", shell=line.format(out=tmp_path / "out")), code, said)


def test_files_opened_later_do_not_get_what_is_printed(scene, tmp_path):
    """With descriptor 2 closed, the first file that the program opens would be its standard error."""
    out = tmp_path / "out"
    done = start(scene, "", shell=f"transfer-job explore --data photos --out {out} --set intake.image_size=32 2>&-")
    assert_ends(done, 0, "")
    assert not any(b"intake    runs" in file.read_bytes() for file in out.rglob("*.json") if file.is_file())


LOCALES = [
    ("ISO-8859-1", {"LC_ALL": "de_DE.iso88591"}),
    ("ASCII", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ("UTF-8 for files only", {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}),
]


@pytest.mark.parametrize("environ", [row[1] for row in LOCALES], ids=[row[0] for row in LOCALES])
def test_names_are_utf_8_whatever_the_locale_is(scene, tmp_path, environ):
    photos = paint_classes(tmp_path / "föhre", per_class=6, kinds=("stripes", "checks"))
    (photos / "stripes").rename(photos / "Größe Ä")
    done = start(scene, f"explore --data {photos} --out {tmp_path / 'out'} --set intake.image_size=32", **environ)
    assert_ends(done, 0, "")
    assert "Größe Ä" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_program_starts_itself_again_only_once_and_keeps_its_number(scene):
    code = "import os, job.console.streams as s; print(os.getpid(), flush=True); s.restart_in_utf8(); print('over')"
    environ = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = start(scene, "", shell=f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}", **environ)
    first, second, over = done.stdout.split()
    assert first == second and over == "over"


TILDES = [
    ("--data", "explore --data ~/photos --out {out}"),
    ("--data=", "explore --data=~/photos --out {out}"),
    ("--out=", "explore --data photos --out=~/x"),
    ("cache.dir", "explore --data photos --out {out} --set cache.dir=~/cache"),
    ("--config=", "explore --data photos --out {out} --config=~/job.toml"),
    ("--labels=", "explore --data photos --out {out} --labels=~/labels.csv"),
]


@pytest.mark.parametrize("command", [row[1] for row in TILDES], ids=[row[0] for row in TILDES])
def test_tilde_is_the_home_folder_everywhere(scene, tmp_path, command):
    home = tmp_path / "home"
    home.mkdir()
    (home / "photos").symlink_to(scene / "photos")
    (home / "job.toml").write_text('[intake]\nimage_size = 32\n[cache]\ndir = "~/cache"\n')
    rows = "".join(f"{kind}/{kind}-00{k}.jpg,{kind}\n" for kind in ("stripes", "checks") for k in range(6))
    (home / "labels.csv").write_text(f"path,label\n{rows}")
    before = sorted(scene.iterdir())
    done = start(scene, f"{command.format(out=tmp_path / 'out')} --set intake.image_size=32", HOME=str(home))
    assert_ends(done, 0, "")
    assert sorted(scene.iterdir()) == before, "no folder is called ~"


def test_home_of_nobody_ends_with_2(scene):
    assert_ends(start(scene, "explore --data=~nobody-of-this-name/x --out none"), 2, NO_HOME)


def test_file_that_cannot_be_read_is_named(scene):
    assert_ends(
        start(scene, "explore --data photos --out none --config /proc/self/mem"), 74, "/proc/self/mem: Input/output error"
    )


def test_links_to_themselves_beside_class_folders_are_left_out(scene, tmp_path):
    photos = shutil.copytree(scene / "photos", tmp_path / "photos")
    for name in ("loop", ".loop"):
        (photos / name).symlink_to(name)
    done = start(scene, f"explore --data {photos} --out {tmp_path / 'out'} --set intake.image_size=32")
    assert_ends(done, 0, "")


def deeper_than_the_stack(folder):
    folder.mkdir()
    for _ in range(1500):
        folder /= "d"
        folder.mkdir()


def test_foreign_folders_deeper_than_the_stack_are_refused(scene, tmp_path):
    deeper_than_the_stack(tmp_path / "out")
    try:
        assert_ends(start(scene, f"explore --data photos --out {tmp_path / 'out'}"), 2, "did not make: d.")
    finally:
        remove_tree(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_deeper_than_the_stack_in_an_output_do_not_matter(scene, tmp_path):
    out = tmp_path / "out"
    assert_ends(start(scene, f"explore --data photos --out {out} --set intake.image_size=32"), 0, "")
    deeper_than_the_stack(out / ".tmp")
    deeper_than_the_stack(out / "model")
    try:
        assert_ends(start(scene, f"report {out}"), 0, "")
        assert not (out / ".tmp").exists() and (out / "model").exists()
    finally:
        remove_tree(out)


def test_no_folder_for_temporary_files_ends_with_2(scene):
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("only root can mount file systems read-only, and not in every container")
    read_only = 'mount --bind "$folder" "$folder" && mount -o remount,ro,bind "$folder"'
    line = f'for folder in /tmp /var/tmp "$PWD"; do {read_only} || exit 99; done; cd "$PWD"; "$0" "$@"'
    command = f"unshare -m bash -c {shlex.quote(line)} {shlex.quote(str(PROGRAM))} explore --data photos --out /dev/shm/none"
    assert_ends(start(scene, "", shell=command, TMPDIR="/proc"), 2, "Set TMPDIR to a folder")


@pytest.mark.parametrize("ignored", [False, True], ids=["heard", "ignored at the start (nohup)"])
def test_hangup_saves_and_ends_with_143_but_not_where_it_was_ignored_at_the_start(scene, tmp_path, ignored):
    job = [PROGRAM, "explore", "--data", "photos", "--out", tmp_path / "out", "--set", "intake.image_size=32"]
    command = ["env", f"--{'ignore' if ignored else 'default'}-signal=HUP", *job]
    process = subprocess.Popen(command, cwd=scene, stderr=subprocess.PIPE, text=True)
    said = ""
    while "intake    runs" not in said:
        said += process.stderr.readline()
    process.send_signal(signal.SIGHUP)
    rest = process.communicate()[1]
    assert process.returncode == (0 if ignored else 143), said + rest
    assert ignored or "Stopped by SIGHUP" in rest


IMAGENET = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
SMALLEST = "--set backbone.alpha=0.35"


@pytest.fixture
def keras_home(tmp_path):
    """The environment of a node whose folder for Keras' weights is its own, and that reaches no network."""
    (tmp_path / "keras" / "models").mkdir(parents=True)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return {"KERAS_HOME": str(tmp_path / "keras"), "TMPDIR": str(tmp_path), **nowhere}


@pytest.mark.parametrize("content", [None, b"", "half"], ids=["missing", "empty", "cut off"])
def test_imagenet_weights_are_looked_for_before_the_work_and_named(scene, tmp_path, keras_home, content, request):
    file = tmp_path / "keras" / "models" / IMAGENET
    if content == "half":
        whole = (request.getfixturevalue("shared") / "weights" / IMAGENET).read_bytes()
        content = whole[: len(whole) // 2]
    if content is not None:
        file.write_bytes(content)
    done = start(scene, f"run --data photos --out {tmp_path / 'out'} {SMALLEST}", **keras_home)
    fault = "does not exist" if content is None else "is damaged"
    way_out = "run transfer-job weights fetch mobilenet_v2:alpha="
    assert_ends(done, 74, f"ImageNet weights: {file} {fault}.*https://.*/{IMAGENET} could not be downloaded.*{way_out}")
    assert "intake    runs" not in done.stderr
    assert content is None or file.read_bytes() == content


def test_dry_run_downloads_nothing(scene, tmp_path, keras_home):
    done = start(scene, f"run --dry-run --data photos --out {tmp_path / 'out'} {SMALLEST}", **keras_home)
    assert_ends(done, 0, "")
    assert "extract    runs" in done.stdout and not list((tmp_path / "keras").rglob("*.h5"))
