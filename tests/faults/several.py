"""Several workers of one run on this machine, as TF_CONFIG tells them, and what becomes of them when one is lost."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import ROOT, free_ports, wait_until
from tests.faults import killer
from tests.warm import WarmStart


class Run:
    """Workers that were started at the same time, worker 0 the chief. Those of `missing` are not started, and worker 1 may
    have another output directory or other settings. `nodes`: for each worker, a folder for what its machine keeps. Stages
    after `stop_after` are left out. `options` are further words of the command line."""

    def __init__(
        self,
        data: Path | str,
        out: Path | str,
        *settings: str,
        missing: Sequence[int] = (),
        other: tuple[Path, str] | None = None,
        nodes: Sequence[Path] = (),
        stop_after: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._addresses = [f"localhost:{port}" for port in free_ports(2)]
        self._nodes = nodes
        self._logs = [(nodes[k] if nodes else Path(out).parent) / f"worker-{k}.txt" for k in range(2)]
        self._commands = [killer.command(data, out, *settings)] * 2
        if other:
            self._commands[1] = killer.command(data, *other)
        if stop_after:
            self._commands = [[*command, "--stop-after", stop_after] for command in self._commands]
        self._commands = [[*command, *options] for command in self._commands]
        self.processes: list[subprocess.Popen[bytes] | None] = [None, None]
        for k in {0, 1} - set(missing):
            self.start(k)

    def start(self, k: int) -> None:
        task = {"cluster": {"worker": self._addresses}, "task": {"type": "worker", "index": k}}
        proxy = "http://127.0.0.1:9"  # Nothing answers there: workers must connect to each other without it.
        environ = {**os.environ, "TF_CONFIG": json.dumps(task), "grpc_proxy": proxy}
        if self._nodes:
            environ["TMPDIR"] = str(self._nodes[k])
        with self._logs[k].open("w") as file:
            self.processes[k] = WarmStart(self._commands[k], cwd=ROOT, env=environ, stdout=file, stderr=file)

    def said(self, k: int) -> str:
        return self._logs[k].read_text() if self._logs[k].exists() else ""

    def send(self, k: int, number: signal.Signals) -> None:
        process = self.processes[k]
        assert process is not None and process.poll() is None, self.said(k)
        process.send_signal(number)

    def is_running(self) -> bool:
        return all(process is None or process.poll() is None for process in self.processes)

    def wait_until(self, holds: Callable[[], object]) -> None:
        """Wait for something that only these workers can bring."""
        wait_until(holds, lambda: self.said(0) + self.said(1), is_alive=self.is_running)

    def codes(self, within_s: float = 300.0) -> list[int | None]:
        """The exit codes, None where a worker was not started. What has not ended in time is killed."""
        deadline = time.monotonic() + within_s
        found: list[int | None] = []
        for process in self.processes:
            try:
                found.append(process and process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                found.append(-999)  # No exit code.
        self.kill()
        return found

    def kill(self) -> None:
        for process in self.processes:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
