"""Which workers there are, as schedulers tell it. The variables of Slurm are those that a real one of two nodes gave."""

import json

import pytest

from job.cluster.devices import Devices, own_gpus
from job.cluster.environment import Cluster
from job.cluster.variables import expand_hosts, numbered
from job.errors import UsageError
from job.runtime.peers import Peers


def tf_config(kind="worker", index=0, **jobs):
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})}


def slurm(task, count, nodes="n[1-2]", on_nodes="1(x2)", distribution="block", local=0, node=0, **more):
    numbers = {"JOB_ID": 7, "PROCID": task, "STEP_NUM_TASKS": count, "LOCALID": local, "NODEID": node}
    texts = {"STEP_NODELIST": nodes, "STEP_TASKS_PER_NODE": on_nodes, "DISTRIBUTION": distribution}
    return {f"SLURM_{name}": str(value) for name, value in {**numbers, **texts}.items()} | more


def kubernetes(index, count="4", **more):
    names = {"CLUSTER_NUM_WORKERS": count, "CLUSTER_JOB_NAME": "flowers", "CLUSTER_SERVICE": "workers"}
    return {"JOB_COMPLETION_INDEX": str(index), **names, **more}


def train_job(index, count="4", address="flowers-node-0-0.flowers"):
    """What Kubeflow Trainer's policy for torch sets."""
    injected = {"NNODES": count, "NODE_RANK": str(index), "NPROC_PER_NODE": "auto", "MASTER_ADDR": address}
    return {"JOB_COMPLETION_INDEX": str(index)} | {f"PET_{name}": value for name, value in injected.items()}


def hosts(cluster):
    return [address.rpartition(":")[0] for address in cluster.addresses]


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, "one machine"),
        # What a batch script itself sees speaks of tasks that srun has not started.
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}, "one machine"),
        (slurm(0, 1, nodes="n1", on_nodes="1"), "Slurm job 7: one task"),
        ({"JOB_COMPLETION_INDEX": "3"}, "Kubernetes: pod 3, a run of its own"),
        (kubernetes(0, "1"), "Kubernetes Job flowers: pod 0 of 1"),
        (train_job(0, "1"), "Kubernetes Job flowers-node-0: pod 0 of 1"),
        (tf_config(), "one machine (TF_CONFIG names no workers)"),
        (tf_config(worker=["a:2"]), "TF_CONFIG: worker 0"),
    ],
)
def test_one_worker_is_one_machine_whatever_the_scheduler(environ, found):
    cluster = Cluster.from_environ(environ)
    assert cluster.num_workers == 1 and cluster.is_chief and cluster.found == found
    assert str(cluster).startswith(f"Cluster: {found}, ")


def test_chief_of_tf_config_is_worker_0():
    jobs = {"chief": ["a:2"], "worker": ["b:2", "c:3"]}
    chief, last = (Cluster.from_environ(tf_config(*task, **jobs)) for task in (("chief", 0), ("worker", 1)))
    assert chief.addresses == last.addresses == ("a:2", "b:2", "c:3")
    assert (chief.index, last.index) == (0, 2) and chief.is_chief and not last.is_chief
    assert chief.control_address == ("a", 1)


def test_tasks_of_slurm_are_placed_as_they_are_distributed():
    block = [slurm(0, 3, on_nodes="2,1"), slurm(1, 3, on_nodes="2,1", local=1), slurm(2, 3, on_nodes="2,1", node=1)]
    found = [Cluster.from_environ(environ) for environ in block]
    assert [hosts(c) for c in found] == [["n1", "n1", "n2"]] * 3 and [c.index for c in found] == [0, 1, 2]
    assert [(c.num_here, c.place_here) for c in found] == [(2, 0), (2, 1), (1, 0)]
    assert len(set(found[0].addresses)) == 3 and len({c.addresses for c in found}) == 1

    cyclic = {"on_nodes": "2,1", "distribution": "cyclic:block"}
    found = [
        Cluster.from_environ(slurm(k, 3, **cyclic, node=node, local=local)) for k, node, local in ((1, 1, 0), (2, 0, 1))
    ]
    assert [hosts(c) for c in found] == [["n1", "n2", "n1"]] * 2 and [c.place_here for c in found] == [0, 1]


def test_components_of_a_heterogeneous_job_are_one_cluster():
    """With --het-group=0,1, srun starts one step, whose variables speak of all components."""
    cluster = Cluster.from_environ(
        slurm(1, 2, distribution="cyclic", node=1, SLURM_HET_SIZE="2", SLURM_JOB_ID_HET_GROUP_1="8")
    )
    assert hosts(cluster) == ["n1", "n2"] and cluster.index == 1


def test_jobs_of_slurm_on_one_machine_have_ports_of_their_own():
    def ports(job):
        cluster = Cluster.from_environ({**slurm(0, 2, nodes="n1", on_nodes="2"), "SLURM_JOB_ID": str(job)})
        return {int(address.rpartition(":")[2]) for address in cluster.addresses} | {cluster.control_address[1]}

    taken = [ports(job) for job in range(1, 30)]
    assert all(len(p) == 3 and min(p) >= 10_000 and max(p) < 32_768 for p in taken)
    assert len(set().union(*taken)) == 3 * len(taken)
    assert ports(10**7)  # However many jobs there were.


def test_gpus_of_a_machine_are_divided_among_its_workers_unless_slurm_has_done_it():
    undivided = slurm(1, 2, nodes="n1", on_nodes="2", local=1, CUDA_VISIBLE_DEVICES="0,1", SLURM_GPUS_ON_NODE="2")
    divided = {**undivided, "CUDA_VISIBLE_DEVICES": "1"}
    assert Cluster.from_environ(undivided).divides_gpus and not Cluster.from_environ(divided).divides_gpus
    assert [own_gpus(["a", "b", "c", "d"], 2, k) for k in (0, 1)] == [["a", "b"], ["c", "d"]]
    with pytest.raises(UsageError, match="3 workers on this machine share 2 GPUs: start at most one"):
        own_gpus(["a", "b"], 3, 0)


def test_gpus_chosen_for_a_worker_of_tf_config_are_its_own():
    given = tf_config(index=1, worker=["a:2", "a:4"])
    assert Cluster.from_environ(given).divides_gpus and Cluster.from_environ(given).place_here == 1
    assert not Cluster.from_environ({**given, "CUDA_VISIBLE_DEVICES": "1"}).divides_gpus


def test_worker_with_other_devices_than_the_chief_is_told_so(monkeypatch):
    class OfChief(Peers):
        def same(self, value):
            return 1

    devices = Devices(Cluster.from_environ(tf_config(index=1, worker=["a:2", "b:3"])))
    monkeypatch.setattr(Devices, "_set_up", (None, []))
    with pytest.raises(UsageError, match="TensorFlow sees 0 GPUs here and 1 on the chief"):
        devices._check_devices(OfChief())


def test_pods_of_an_indexed_job_are_known_by_their_service():
    cluster = Cluster.from_environ(kubernetes(2))
    assert cluster.addresses[3] == "flowers-3.workers:2222" and cluster.index == 2
    assert cluster.control_address == ("flowers-0.workers", 2221)
    assert str(cluster).startswith("Cluster: Kubernetes Job flowers: pod 2 of 4; this is worker 2 of 4 workers: flowers-0.")


def test_pods_of_a_train_job_are_known_by_the_address_of_the_first():
    cluster = Cluster.from_environ(train_job(2))
    assert hosts(cluster) == [f"flowers-node-0-{k}.flowers" for k in range(4)] and cluster.index == 2
    assert cluster.control_address == ("flowers-node-0-0.flowers", 2221)


def test_numbers_of_pods_and_array_tasks_are_filled_into_arguments():
    environ = {"JOB_COMPLETION_INDEX": "3", "SLURM_ARRAY_TASK_ID": "12"}
    assert numbered("--out=runs/{index}", environ) == "--out=runs/3"
    assert numbered("{array}/{array}.toml", environ) == "12/12.toml"
    assert numbered("photos/{other}", {}) == "photos/{other}"
    with pytest.raises(UsageError, match=r"runs/\{index\}: \{index\} stands for JOB_COMPLETION_INDEX, which is not set"):
        numbered("runs/{index}", {})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG cannot be read"),
        ({"TF_CONFIG": "[]"}, "TF_CONFIG cannot be read"),
        (tf_config(index=2, worker=["a:2", "b:2"]), "TF_CONFIG: worker 2: there is no such worker among 2 (a:2, b:2)"),
        (tf_config(worker=["a:2", "b:2"], ps=["c:3"]), "only chief and worker, not ps"),
        (tf_config("evaluator", worker=["a:2", "b:2"]), "only chief and worker, not evaluator"),
        (tf_config(worker=["a:2", "b"]), "b is not HOST:PORT"),
        (tf_config(worker=["a:2", "a:2"]), "two workers have the same address"),
        (tf_config(worker=["a:1", "b:5"]), "a:1 is not HOST:PORT with a port from 2"),
        (tf_config(worker=["a:5", "b:65536"]), "b:65536 is not HOST:PORT with a port from 2 to 65535"),
        (tf_config(worker=["a:5", "a:4"]), "a worker has a:4, but the chief needs this port, too"),
        (slurm(0, 3), "SLURM_STEP_NUM_TASKS=3, SLURM_STEP_NODELIST=n[1-2], SLURM_STEP_TASKS_PER_NODE=1(x2)"),
        (slurm(0, 2, distribution="arbitrary"), "srun --distribution=arbitrary does not tell which task is where"),
        (slurm(1, 2, local=1, node=0), "Slurm did not place task 1 as SLURM_DISTRIBUTION (block) says"),
        (kubernetes(4), "pod 4 of 4: there is no such worker among 4"),
        (kubernetes(0, "four"), "CLUSTER_NUM_WORKERS is not a number: 'four'"),
        (kubernetes(0, "0"), "pod 0 of 0: there is no such worker among 0"),
        (
            kubernetes(0, CLUSTER_SERVICE=""),
            "CLUSTER_NUM_WORKERS means several pods, but CLUSTER_JOB_NAME and CLUSTER_SERVICE",
        ),
        (train_job(0, address="10.0.0.1"), "PET_MASTER_ADDR, do not say where they are"),
        (train_job(0, "1:4"), "PET_NNODES is not a number: '1:4'"),
    ],
)
def test_contradiction_is_an_error_that_names_it(environ, said):
    with pytest.raises(UsageError) as error:
        Cluster.from_environ(environ)
    assert said in str(error.value)


def test_logical_cpus_are_for_a_single_worker():
    with pytest.raises(UsageError, match="cluster.logical_cpus is for a single worker"):
        Devices(Cluster.from_environ(kubernetes(0)), logical_cpus=2)


@pytest.mark.parametrize(
    ("short", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3,07],login", ["n1", "n2", "n3", "n07", "login"]),
        ("gpu[008-010]", ["gpu008", "gpu009", "gpu010"]),
        ("r[1-2]n[3,5].site", ["r1n3.site", "r1n5.site", "r2n3.site", "r2n5.site"]),
    ],
)
def test_lists_of_hosts_are_expanded(short, hosts):
    assert expand_hosts(short) == hosts
