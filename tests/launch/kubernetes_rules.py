"""What must hold for rendered manifests, and no schema knows: each rule yields its complaints about one rendered overlay."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from job.cluster.environment import Cluster
from job.errors import JobError, Stopped, StorageFailed, TryAgainLater, UsageError
from job.storage.bucket.objects import is_remote
from job.storage.bucket.open import open_objects
from tests.launch.controllers import JOB_NAME, JOB_SET_NAME, Manifest
from tests.launch.rendered import Rendered

GPU = "nvidia.com/gpu"
RETRIED = (StorageFailed, TryAgainLater, Stopped)
# Where pods of GKE get tokens, with Dataplane V2 and without it.
METADATA = {"169.254.169.254/32": [80, 8080], "169.254.169.252/32": [987, 988]}
_OWN = {JOB_NAME, JOB_SET_NAME}  # Labels that only the pods of one Job have.
# https://kubernetes.io/docs/concepts/security/pod-security-standards: what a pod that is "restricted" may mount.
_RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def exit_codes(error: type[JobError] = JobError) -> dict[str, int]:
    """Everything that errors.py draws, by name."""
    codes = {error.__name__: error.exit_code}
    for kind in error.__subclasses__():
        if kind.__module__ == JobError.__module__:
            codes |= exit_codes(kind)
    return codes


def quantity(text: str | int) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(m|[KMGT]i)?", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, None: 1}[unit]


def pods_are_not_restarted_in_place(rendered: Rendered) -> Iterator[str]:
    if rendered.pod.get("restartPolicy") != "Never":
        yield "restartPolicy is not Never, which podFailurePolicy asks for"
    if rendered.spec.get("podReplacementPolicy") != "Failed":
        yield "podReplacementPolicy is not Failed: two pods could be at one output"


def exit_codes_are_those_of_errors(rendered: Rendered) -> Iterator[str]:
    rules = rendered.spec["podFailurePolicy"]["rules"]
    if rendered.verdict(condition="DisruptionTarget") != "Ignore" or "onPodConditions" not in rules[0]:
        yield "the first rule does not ignore disruptions"
    for rule in rules:
        by_code = rule.get("onExitCodes")
        if by_code and (by_code.get("containerName") != rendered.container["name"] or by_code["operator"] != "In"):
            yield f"{rule['action']} does not name the codes of the container {rendered.container['name']}"
        if by_code and by_code["values"] != sorted(set(by_code["values"])):
            yield "the API server wants codes in order, each once"
    retried = {kind.exit_code for kind in RETRIED}
    is_final = "FailIndex" if rendered.is_indexed and not rendered.has_workers else "FailJob"
    for name, code in exit_codes().items():
        found = rendered.verdict(code)
        if found not in (("Count", "Ignore") if code in retried else (is_final,)):
            yield f"{code} ({name}): {found}"


def the_run_is_bounded(rendered: Rendered) -> Iterator[str]:
    spec, of_set = rendered.spec, (rendered.job_set or {}).get("spec", {})
    given = {**spec, "ttlSecondsAfterFinished": of_set.get("ttlSecondsAfterFinished", spec.get("ttlSecondsAfterFinished"))}
    yield from (f"{name} is missing" for name in ("activeDeadlineSeconds", "ttlSecondsAfterFinished") if not given.get(name))
    if rendered.job_set:
        if not of_set["failurePolicy"].get("maxRestarts"):
            yield "no worker that is lost comes again"
        return
    counted = {"backoffLimitPerIndex"} if rendered.is_indexed else {"backoffLimit"}
    counted |= {"maxFailedIndexes"} if rendered.has_workers else set()
    if {"backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes"} & spec.keys() != counted:
        yield f"attempts are not counted by {' and '.join(sorted(counted))}"
    elif rendered.has_workers and spec["maxFailedIndexes"] != 0:
        yield "the Job goes on when it has lost a worker for good"


def workers_know_their_number(rendered: Rendered) -> Iterator[str]:
    spec = rendered.spec
    if not rendered.is_indexed:
        if spec.get("completions", 1) != 1 or spec.get("parallelism", 1) != 1 or "CLUSTER_NUM_WORKERS" in rendered.env:
            yield "the Job has many pods or is told of them, and is not Indexed"
        return
    if not rendered.has_workers:
        if "{index}" not in next((word for word in rendered.container["args"] if word.startswith("--out=")), ""):
            yield "the pods are no workers of one run, and have one output"
        return
    told = rendered.environment().get("PET_NNODES", rendered.environment().get("CLUSTER_NUM_WORKERS"))
    if {"PET_NNODES", "CLUSTER_NUM_WORKERS"} <= rendered.env.keys():
        yield "the number of workers is given twice"
    if spec["completions"] != spec["parallelism"] or told != str(spec["completions"]):
        yield f"completions {spec['completions']}, parallelism {spec['parallelism']}, CLUSTER_NUM_WORKERS {told}"
    if spec["completions"] < 2:
        yield "one worker needs no other"


def workers_find_each_other(rendered: Rendered) -> Iterator[str]:
    if not rendered.has_workers:
        return
    (service,) = rendered.of("Service")
    name, job = service["metadata"]["name"], rendered.job["metadata"]["name"]
    if rendered.pod.get("subdomain") != name:
        yield f"the pods get no names: their subdomain is {rendered.pod.get('subdomain')}, the Service {name}"
    given = [f"{job}-{k}.{name}" for k in range(rendered.spec["completions"])]
    try:
        sought = [address.partition(":")[0] for address in Cluster.from_environ(rendered.environment()).addresses]
    except UsageError as error:
        yield str(error)
    else:
        if sought != given:
            yield f"the program looks for {sought}, and the pods are {given}"
    if service["spec"].get("clusterIP") != "None" or not service["spec"].get("publishNotReadyAddresses"):
        yield "the Service does not give every pod a name from the start"
    if not rendered.selected_by(service["spec"]["selector"]) or not _OWN & service["spec"]["selector"].keys():
        yield "the Service does not select the pods of this Job"
    if len(given[-1].partition(".")[0]) > 63:
        yield "a worker's name is too long for a host name"


def ports_agree(rendered: Rendered) -> Iterator[str]:
    expected = []
    if rendered.has_workers:
        with suppress(UsageError):  # Another rule's complaint.
            cluster = Cluster.from_environ(rendered.environment())
            expected = [cluster.control_address[1], int(cluster.addresses[0].partition(":")[2])]
    found = {"container": [port["containerPort"] for port in rendered.container.get("ports", [])]}
    for service in (service for service in rendered.of("Service") if not rendered.job_set):  # Its Service names no ports.
        found["Service"] = [port["port"] for port in service["spec"]["ports"]]
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        found[direction] = [
            port["port"]
            for policy in rendered.of("NetworkPolicy")
            if rendered.selected_by(policy["spec"]["podSelector"]["matchLabels"])
            for rule in policy["spec"].get(direction, [])
            if any("podSelector" in peer for peer in rule.get(peers, []))
            for port in rule.get("ports", [])
        ]
    yield from (f"{where}: {ports}, expected {expected}" for where, ports in found.items() if sorted(ports) != expected)


def workers_talk_to_workers_only(rendered: Rendered) -> Iterator[str]:
    policies = [m["spec"] for m in rendered.of("NetworkPolicy")]
    closed = {kind for p in policies if rendered.selected_by(p["podSelector"]["matchLabels"]) for kind in p["policyTypes"]}
    if closed != {"Ingress", "Egress"}:
        yield "the pods are open to everybody"
    for policy in policies:
        peers = [peer for rule in policy.get("ingress", []) for peer in rule.get("from", [{}])]
        peers += [peer for rule in policy.get("egress", []) for peer in rule.get("to", []) if "ipBlock" not in peer]
        for peer in peers:
            labels = peer.get("podSelector", {}).get("matchLabels", {})
            if not _OWN & labels.keys() or not rendered.selected_by(labels):
                yield f"others than the workers of this Job are let in or reached: {peer}"


def volumes_exist(rendered: Rendered) -> Iterator[str]:
    mounts = {mount["name"]: mount for mount in rendered.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in rendered.pod["volumes"]}
    yield from (f"{name} is only mounted, or only there" for name in sorted(mounts.keys() ^ volumes.keys()))
    for name, volume in volumes.items():
        if len(volume) != 2:
            yield f"{name} has {len(volume) - 1} sources"
        if "configMap" in volume and volume["configMap"]["name"] not in rendered.names("ConfigMap"):
            yield f"{name}: there is no ConfigMap {volume['configMap']['name']}"
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        is_read_only = mounts.get(name, {}).get("readOnly")
        if claim and not is_read_only and claim not in rendered.names("PersistentVolumeClaim"):
            yield f"{name}: nobody makes the claim {claim}"
    if rendered.is_indexed and any(
        m["spec"]["accessModes"] != ["ReadWriteMany"] for m in rendered.of("PersistentVolumeClaim")
    ):
        yield "workers on many nodes cannot share a claim that is not ReadWriteMany"
    folders = [mount["mountPath"] for mount in mounts.values()]
    words = [word.rpartition("=")[2] for word in (*rendered.arguments(), *rendered.environment().values())]
    for path in (word for word in words if word.startswith("/")):
        if not any(Path(path).is_relative_to(folder) for folder in folders):
            yield f"{path} is in no volume"
    unwritable = {"/tmp", "/dev/shm"} - set(folders)  # The root file system is read-only.
    yield from (f"{path} cannot be written to" for path in sorted(unwritable))


def photos_and_results_have_a_place(rendered: Rendered) -> Iterator[str]:
    for place in rendered.places.values():
        if "$(" in place:
            yield f"nobody says what {place} is"
        elif is_remote(place):
            try:
                open_objects(place)
            except UsageError as error:
                yield str(error)
    scratch_bytes = quantity(rendered.volume("tmp")["emptyDir"]["sizeLimit"])
    if is_remote(rendered.places.get("out", "")) and scratch_bytes < 16 * 2**30:
        yield "what goes to a bucket is made in /tmp first, stores included, and has no room there"


def buckets_alone_open_the_metadata_server(rendered: Rendered) -> Iterator[str]:
    """Whoever reaches it has the permissions of the service account."""
    if rendered.pod.get("serviceAccountName") not in rendered.names("ServiceAccount"):
        yield f"there is no service account {rendered.pod.get('serviceAccountName')}"
    found = {
        peer["ipBlock"]["cidr"]: sorted(port["port"] for port in rule.get("ports", []))
        for policy in rendered.of("NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if "ipBlock" in peer and "169.254.0.0/16" not in peer["ipBlock"].get("except", [])
    }
    wanted = METADATA if any(place.startswith("gs://") for place in rendered.places.values()) else {}
    if found != wanted:
        yield f"local addresses that can be reached: {found}, expected {wanted}"


def sizes_fit(rendered: Rendered) -> Iterator[str]:
    requests, limits = (rendered.container["resources"].get(kind, {}) for kind in ("requests", "limits"))
    for name in ("cpu", "memory", "ephemeral-storage"):
        if name not in requests or name not in limits:
            yield f"{name} has no request or no limit"
        elif quantity(requests[name]) > quantity(limits[name]):
            yield f"{name}: the request {requests[name]} is above the limit {limits[name]}"
    taken = {"memory": 0.0, "ephemeral-storage": 0.0}
    for volume in rendered.pod["volumes"]:
        if (folder := volume.get("emptyDir")) is not None:
            if "sizeLimit" not in folder:
                yield f"{volume['name']} may grow without end"
            where = "memory" if folder.get("medium") == "Memory" else "ephemeral-storage"
            taken[where] += quantity(folder.get("sizeLimit", 0))
    for name, total in taken.items():
        if name in limits and total >= quantity(limits[name]):
            yield f"scratch folders may take more {name} than the limit {limits[name]}"


def gpus_are_consistent(rendered: Rendered) -> Iterator[str]:
    requests, limits = (rendered.container["resources"].get(kind, {}).get(GPU) for kind in ("requests", "limits"))
    if requests is None and limits is None:
        return
    if requests != limits or not isinstance(limits, int) or limits < 1:
        yield f"{requests} GPUs asked for, {limits} allowed: Kubernetes gives whole ones, and both must agree"
    with suppress(click.UsageError, UsageError):  # Another rule's complaint.
        if not rendered.config().cluster.require_gpu:
            yield "a pod whose GPU does not work would compute on its CPUs"
    if not any(toleration.get("key") == GPU for toleration in rendered.pod.get("tolerations", [])):
        yield "nodes with GPUs are kept free for pods that tolerate their taint"


def a_stop_has_time_to_save(rendered: Rendered) -> Iterator[str]:
    given_s = rendered.pod.get("terminationGracePeriodSeconds", 30)
    with suppress(click.UsageError, UsageError):  # Another rule's complaint.
        grace_s = rendered.config().checkpoint.grace_s
        if given_s <= grace_s:
            yield f"terminationGracePeriodSeconds {given_s} is not above checkpoint.grace_s {grace_s:g}"
    if given_s > 15 and "cloud.google.com/gke-spot" in rendered.pod.get("nodeSelector", {}):
        yield f"terminationGracePeriodSeconds {given_s}: spot nodes of GKE give 15"


def the_last_message_is_shown(rendered: Rendered) -> Iterator[str]:
    policy = rendered.container.get("terminationMessagePolicy")
    if policy != "FallbackToLogsOnError":
        yield f"terminationMessagePolicy {policy}: the status of a pod that was killed says nothing"


def the_program_takes_its_command_line(rendered: Rendered) -> Iterator[str]:
    try:
        rendered.config()
    except (click.UsageError, UsageError) as error:
        yield str(error)


def pod_is_restricted(rendered: Rendered) -> Iterator[str]:
    of_pod, of_container = rendered.pod.get("securityContext", {}), rendered.container.get("securityContext", {})
    expected: dict[str, tuple[Any, Any]] = {
        "runAsNonRoot": (of_pod.get("runAsNonRoot"), True),
        "runAsUser": (of_pod.get("runAsUser"), 10001),
        "fsGroup": (of_pod.get("fsGroup"), 10001),
        "seccompProfile": (of_pod.get("seccompProfile"), {"type": "RuntimeDefault"}),
        "automountServiceAccountToken": (rendered.pod.get("automountServiceAccountToken"), False),
        "allowPrivilegeEscalation": (of_container.get("allowPrivilegeEscalation"), False),
        "readOnlyRootFilesystem": (of_container.get("readOnlyRootFilesystem"), True),
        "capabilities": (of_container.get("capabilities"), {"drop": ["ALL"]}),
    }
    yield from (f"{name} is {found}" for name, (found, wanted) in expected.items() if found != wanted)
    yield from (f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if rendered.pod.get(name))
    sources = {source for volume in rendered.pod["volumes"] for source in volume.keys() - {"name"}}
    yield from (f"a volume is of the kind {kind}" for kind in sorted(sources - _RESTRICTED_VOLUMES))


RULES: tuple[Callable[[Rendered], Iterator[str]], ...] = (
    pods_are_not_restarted_in_place,
    exit_codes_are_those_of_errors,
    the_run_is_bounded,
    workers_know_their_number,
    workers_find_each_other,
    ports_agree,
    workers_talk_to_workers_only,
    volumes_exist,
    photos_and_results_have_a_place,
    buckets_alone_open_the_metadata_server,
    sizes_fit,
    gpus_are_consistent,
    a_stop_has_time_to_save,
    the_last_message_is_shown,
    the_program_takes_its_command_line,
    pod_is_restricted,
)


def complaints(manifests: Sequence[Manifest]) -> dict[str, list[str]]:
    """What each rule has against these objects, by the name of the rule; empty where all is well."""
    rendered = Rendered(manifests)
    found = {rule.__name__: list(rule(rendered)) for rule in RULES}
    return {name: said for name, said in found.items() if said}
