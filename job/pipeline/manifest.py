"""model/manifest.json: the SHA-256 of every file of the model, and what they were made from.

It is a statement of in-toto (https://in-toto.io/Statement/v1) with the provenance of SLSA (https://slsa.dev/provenance/v1),
which tools that sign and verify software read. Nothing in the job reads it: model.json says which files predict may load.
"""

from collections.abc import Mapping

from job.config import with_dotted_names
from job.reporting.summaries import Run

_BUILDER = ("transfer-job", "python")


def manifest(run: Run, files: Mapping[str, str], splits: Mapping[str, str]) -> dict[str, object]:
    """Return the content of manifest.json. `files` has the SHA-256 of each file, `splits` that of each split's photos."""
    config, versions = run["config"], run["versions"]
    photos = [{"name": f"photos/{split}", "uri": run["data"], **_sha256(digest)} for split, digest in splits.items()]
    weights = {"name": "weights", "uri": config["backbone"]["weights"], **_sha256(run.get("weights_sha256"))}
    packages = [{"uri": f"pkg:pypi/{name}@{versions[name]}"} for name in versions if name not in _BUILDER]
    image, _, digest = run.get("image", "").partition("@sha256:")
    images = [{"name": "image", "uri": image, **_sha256(digest)}] if image else []
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, **_sha256(digest)} for name, digest in sorted(files.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:transfer-job:run:1",
                "externalParameters": {"data": run["data"], "labels": run["labels"], **dict(with_dotted_names(config))},
                "internalParameters": run["fingerprint"],
                "resolvedDependencies": [*photos, weights, *images, *packages],
            },
            "runDetails": {
                "builder": {"id": "urn:transfer-job", "version": {name: versions[name] for name in _BUILDER}},
                "metadata": {"invocationId": run.get("run_id", ""), "startedOn": run["started"].replace("+00:00", "Z")},
            },
        },
    }


def _sha256(digest: str | None) -> dict[str, object]:
    """Return a digest as in-toto writes it; nothing if there is none."""
    return {"digest": {"sha256": digest}} if digest else {}
