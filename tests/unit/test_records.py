import json

from job.pipeline.records import Records, read_run, write_run
from job.pipeline.table import STAGES
from job.storage.workdir import Workdir

RECORD = {"stage": "head", "key": {"its settings": "2f1d"}, "outputs": {"stages/head/head.npz": "09ab"}, "wall_s": 1.25}


def test_record_with_any_flipped_bit_counts_as_not_finished(tmp_path):
    workdir = Workdir(tmp_path)
    Records(workdir).write("head", RECORD)
    file = tmp_path / "stages" / "head.json"
    written = file.read_bytes()
    for bit in range(8 * len(written)):
        changed = bytearray(written)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        assert Records(workdir)["head"] in (None, RECORD), changed  # A blank may have become another one.
    file.write_bytes(written)
    assert Records(workdir)["head"] == RECORD


def test_records_of_another_shape_count_as_not_finished(tmp_path):
    workdir = Workdir(tmp_path)
    assert Records(workdir)["head"] is None
    for content in ("", "[]", "{}", "null", "3", '"text"', "[" * 5000, "{", json.dumps(RECORD)):
        workdir.write_bytes("stages/head.json", content.encode())
        assert Records(workdir)["head"] is None, content[:20]


def test_run_json_is_what_was_written_or_nothing(tmp_path):
    workdir = Workdir(tmp_path)
    write_run(workdir, {"data": "photos", "config": {"seed": 0}})
    assert read_run(workdir) == {"data": "photos", "config": {"seed": 0}}
    file = tmp_path / "run.json"
    file.write_text(file.read_text().replace('"config"', '"confih"'))
    assert read_run(workdir) is None


def test_results_of_another_version_do_not_belong_together(tmp_path):
    workdir = Workdir(tmp_path)
    schema = STAGES["evaluate"].schema
    for number, said in ((schema, []), (schema - 1, ["evaluate: made by another version of the job"])):
        Records(workdir).write("evaluate", {**RECORD, "stage": "evaluate", "schema": number, "outputs": {}})
        assert Records(workdir).contradictions(["evaluate"]) == said
