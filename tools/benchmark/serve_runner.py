"""The sides of the serve benchmark."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence

from common.errors import BenchmarkError
from common.paths import ROOT
from tools.benchmark.protocol import RATE, Round
from tools.loadtest.service_process import TICKS, Service, memory_mb, processor_s


class ServiceSide(Service):
    """A service under load for `seconds` per round.

    Between its rounds it is stopped, with its child processes: litserve's poll their queues all the time, a tenth of a
    core, which the other sides' rounds would lack.
    """

    def __init__(self, name: str, command: Sequence[str], health: str, clients: int, seconds: float) -> None:
        super().__init__(name, command, health)
        self.clients, self.seconds = clients, seconds
        self.versions: dict[str, str] = {}
        self.signal(signal.SIGSTOP)

    def play(self) -> Round:
        """Load it for `seconds`."""
        self.signal(signal.SIGCONT)
        try:
            return self._loaded()
        finally:
            self.signal(signal.SIGSTOP)

    def _loaded(self) -> Round:
        command = [sys.executable, "-m", "tools.loadtest.http_client", "--port", str(self.port)]
        command += ["--clients", str(self.clients), "--seconds", str(self.seconds)]
        pid = self.process.pid
        before, used = memory_mb(pid), processor_s(pid)
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise BenchmarkError(f"{self.name}: the client failed: {lines[-1] if lines else done.returncode}")
        if done.stderr:
            print(f"{self.name}: {done.stderr.strip()}", file=sys.stderr)
        figures: Round = json.loads(done.stdout)
        used = max(processor_s(pid) - used, 1 / TICKS)  # the resolution of the counter
        cores = used / figures.pop("seconds")
        per_core = {"cores": cores, "requests/s a core": figures[RATE] / cores}
        return {**figures, **per_core, "MB at start": before, "MB at end": memory_mb(pid)}
