"""Commands on another machine through the system's ssh, with its own config, agent and known hosts; or here."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from typing import IO

from projects.errors import ProjectError
from projects.submitters import Address

OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15", "-o", "ForwardX11=no")
NOT_REACHED = 255  # ssh's own exit code
USUAL_PORT = 22  # which is left to ssh's config
HINTS = {  # by what ssh says
    "Permission denied": "it must let you in with a key: ssh-copy-id {name}, or ssh-add for a key with a passphrase",
    "Host key verification failed": "log in once by hand to accept its key: ssh {name}",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "it has another key than it had: ask whoever runs it",
}


@dataclass(frozen=True)
class Shell:
    """Runs lines of sh on a machine; here where there is no address."""

    address: Address | None = None

    @property
    def name(self) -> str:
        """Return the machine's name for messages."""
        return self.address.name if self.address else "this machine"

    def words(self, script: str) -> list[str]:
        """Return the words that run a script."""
        if self.address is None:
            return ["sh", "-c", script]
        port = ["-p", str(self.address.port)] if self.address.port != USUAL_PORT else []
        return ["ssh", *OPTIONS, *port, "--", self.address.name, f"sh -c {shlex.quote(script)}"]

    def run(self, script: str, stdin: bytes = b"", stdout: IO[bytes] | int = subprocess.PIPE) -> bytes:
        """Run a script, and return what it prints, b"" where that goes elsewhere.

        Raises ProjectError where the machine is not reached, or the script ends with another exit code than 0.
        """
        try:
            done = subprocess.run(self.words(script), input=stdin, stdout=stdout, stderr=subprocess.PIPE)
        except OSError as error:
            raise ProjectError(f"{self.name}: cannot run {self.words('')[0]}: {error.strerror}") from error
        if done.returncode:
            raise ProjectError(self._failure(done.returncode, done.stderr.decode(errors="replace")))
        return done.stdout or b""

    def follow(self, script: str) -> int:
        """Run a script that prints where this program does; return its exit code."""
        return subprocess.call(self.words(script), stdin=subprocess.DEVNULL)

    def _failure(self, code: int, said: str) -> str:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        text = f"{self.name}: {lines[-1] if lines else f'exit code {code}'}"
        if code == NOT_REACHED and self.address is not None:
            hint = next((hint for sign, hint in HINTS.items() if sign in said), "")
            text += f"; {hint.format(name=self.address.name)}" if hint else ""
        return text
