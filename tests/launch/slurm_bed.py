"""A real Slurm of two nodes, n1 and n2, on this machine, with two GPUs each that are only device files.

The nodes are slurmd daemons in namespaces of their own: each has its host name, its processes, and a hosts file in which the
other one is found. They share the network, so two workers of a job need two ports, and the file system, as on a cluster.
"""

import os
import platform
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.beds import missing
from tests.conftest import WAIT_S, free_ports, wait_until

_NODES = {"n1": "127.0.0.2", "n2": "127.0.0.3"}
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "sinfo", "unshare")
# Whatever runs in them ends with them, unfinished jobs included.
_NAMESPACES = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
_UNFINISHED = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that was requeued waits until the credentials of its last start are void: seconds with this, else two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
# Without cgroups, which containers do not have.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
KillWait=15
ReturnToService=2
GresTypes=gpu
# More processors than there are.
SlurmdParameters=config_overrides
{nodes}
PartitionName=batch Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """Its commands. They run in a folder of their own, where logs go that have no other place."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def submit(self, script: Path, *options: str) -> str:
        """The number of the job."""
        return self("sbatch", "--parsable", *options, str(script)).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm tells of a job: JobState, Restarts, ExitCode and more."""
        words = self("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def finished(self, number: str) -> dict[str, str]:
        """The job, when Slurm is done with it: three looks, for one that starts again shows its last end for a moment."""
        looks: list[bool] = []

        def has_ended() -> bool:
            looks.append(self.job(number)["JobState"] not in _UNFINISHED)
            return looks[-3:] == [True] * 3

        self.wait_until(has_ended, number)
        return self.job(number)

    def wait_until(self, holds: Callable[[], bool], number: str) -> None:
        """Fails with the job's log where it takes so long that it will not come."""
        # Most of what is waited for is asked of Slurm, in a process that is started for it.
        wait_until(holds, lambda: f"{self.job(number)}\n{self.log(number)}", every_s=0.5)

    def log(self, number: str) -> str:
        file = Path(self.job(number)["StdOut"])
        return file.read_text() if file.exists() else ""


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """A Slurm whose nodes are idle. It ends with the block, and all its jobs with it."""
    if absent := [program for program in _PROGRAMS if not shutil.which(program)]:
        missing(f"Slurm is not installed: {', '.join(absent)} are missing (.ci/slurm installs them)")
    if os.geteuid() != 0 or subprocess.run([*_NAMESPACES, "true"], capture_output=True, check=False).returncode != 0:
        missing("nodes of Slurm need root, and namespaces of their own")
    _write(folder)
    slurm = Slurm(folder, {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")})
    with ExitStack() as daemons:
        names = ("socket", "key-file", "pid-file", "seed-file")
        munge = [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in names]
        daemons.enter_context(_daemon(slurm, "munged", "munged", "--foreground", "--force", *munge))
        wait_until((folder / "munge.socket").exists)
        daemons.enter_context(_daemon(slurm, "slurmctld", "slurmctld", "-D", "-c"))
        for node in _NODES:
            script = f"hostname {node} && mount --bind {folder}/hosts /etc/hosts && exec slurmd -D"
            daemons.enter_context(_daemon(slurm, node, *_NAMESPACES, "sh", "-c", script))
        wait_until(lambda: _are_idle(slurm), lambda: f"Slurm does not start:\n{_logs(slurm)}")
        yield slurm


def _write(folder: Path) -> None:
    for name in ("state", "log", *(f"spool-{node}" for node in _NODES)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    names = "".join(f"{address} {node}\n" for node, address in _NODES.items())
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
    for k in range(2):
        os.mknod(folder / f"gpu{k}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # As /dev/null.
    ctld_port, *node_ports = free_ports(1 + len(_NODES))
    nodes = [
        f"NodeName={node} NodeAddr={address} Port={port} CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN"
        for (node, address), port in zip(_NODES.items(), node_ports, strict=True)
    ]
    host = platform.node().partition(".")[0]
    (folder / "slurm.conf").write_text(_CONF.format(host=host, folder=folder, ctld_port=ctld_port, nodes="\n".join(nodes)))
    (folder / "gres.conf").write_text(f"NodeName={','.join(_NODES)} Name=gpu File={folder}/gpu[0-1]\n")


@contextmanager
def _daemon(slurm: Slurm, name: str, *words: str) -> Iterator[None]:
    with (slurm.folder / "log" / name).open("w") as log:
        process = subprocess.Popen(words, env=slurm.environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)  # Nothing of it is needed again, and unshare listens to nothing else.
        process.wait()


def _are_idle(slurm: Slurm) -> bool:
    words = ("sinfo", "--noheader", "--Node", "--format=%T")  # Ends with 1 until slurmctld is there.
    found = subprocess.run(words, env=slurm.environment, capture_output=True, text=True, check=False)
    return found.stdout.split() == ["idle"] * len(_NODES)


def _logs(slurm: Slurm) -> str:
    return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in (slurm.folder / "log").iterdir())
