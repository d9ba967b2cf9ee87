"""What the controllers of Kubeflow Trainer and JobSet make of their objects.

None of them runs here, so it is done by hand, as the sources of Trainer 2.2 (`pkg/runtime/framework/plugins`) and JobSet
0.10 (`pkg/controllers`) do it.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

Manifest = dict[str, Any]

JOB_NAME = "batch.kubernetes.io/job-name"  # A label that Kubernetes gives to the pods of a Job.
JOB_SET_NAME = "jobset.sigs.k8s.io/jobset-name"  # And JobSet to those of its Jobs.
_STEP = "trainer.kubeflow.org/trainjob-ancestor-step"


def applied(manifests: Sequence[Manifest]) -> list[Manifest]:
    """The objects, and those that controllers make of them: a TrainJob's JobSet, and a JobSet's Job and Service."""
    objects = list(manifests)
    for train_job in [m for m in objects if m["kind"] == "TrainJob"]:
        (runtime,) = (m for m in objects if m["kind"] == "TrainingRuntime")
        assert train_job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
        objects.append(_job_set(train_job, runtime))
    for job_set in [m for m in objects if m["kind"] == "JobSet"]:
        objects += [_job(job_set), _service(job_set)]
    return objects


def _job_set(train_job: Manifest, runtime: Manifest) -> Manifest:
    """What Trainer makes where the runtime has the policy for torch."""
    name, spec = train_job["metadata"]["name"], deepcopy(runtime["spec"]["template"]["spec"])
    (replicated,) = spec["replicatedJobs"]
    assert replicated["name"] == "node" and replicated["template"]["metadata"]["labels"][_STEP] == "trainer"
    assert runtime["spec"]["mlPolicy"]["torch"] == {}
    trainer = train_job["spec"]["trainer"]
    count = trainer.get("numNodes", runtime["spec"]["mlPolicy"]["numNodes"])
    replicated["template"]["spec"] |= {"completions": count, "parallelism": count}
    (container,) = (c for c in replicated["template"]["spec"]["template"]["spec"]["containers"] if c["name"] == "node")
    rank = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    injected = [
        {"name": "PET_NNODES", "value": str(count)},
        {"name": "PET_NPROC_PER_NODE", "value": "auto"},
        {"name": "PET_NODE_RANK", "valueFrom": rank},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": "29400"},
    ]
    variables = {variable["name"]: variable for variable in [*container["env"], *trainer.get("env", []), *injected]}
    container["env"] = list(variables.values())
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": name}, "spec": spec}


def _job(job_set: Manifest) -> Manifest:
    """The Job of a JobSet with one replica of one Job, in its first attempt."""
    name = job_set["metadata"]["name"]
    (replicated,) = job_set["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    spec = deepcopy(replicated["template"]["spec"])
    spec["template"]["metadata"]["labels"][JOB_SET_NAME] = name
    if job_set["spec"]["network"]["enableDNSHostnames"]:
        spec["template"]["spec"]["subdomain"] = name
    metadata = {"name": f"{name}-{replicated['name']}-0", "labels": {JOB_SET_NAME: name}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _service(job_set: Manifest) -> Manifest:
    name, network = job_set["metadata"]["name"], job_set["spec"]["network"]
    published = {"publishNotReadyAddresses": network["publishNotReadyAddresses"]}
    spec = {"clusterIP": "None", "selector": {JOB_SET_NAME: name}, **published}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
