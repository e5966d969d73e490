"""Repositories of users, and what stands in for the machines that jobs run on."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

BATCH = ("-o", "BatchMode=yes")
WHO = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main")


def commit_all(folder: Path, files: Mapping[str, str] | None = None) -> None:
    """Write files into a folder, and commit all that git does not ignore there, in a repository of its own."""
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    git = ["git", "-C", str(folder), *WHO]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "1"]):
        subprocess.run([*git, *words], check=True)


@contextmanager
def sshd_on_loopback(folder: Path) -> Iterator[Path]:
    """Run an sshd for this user, and yield a folder with an `ssh` that knows it as "box". Skip where there is none."""
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(program).is_file() or not shutil.which("ssh"):
        pytest.skip("no sshd and ssh here: apt-get install openssh-server")
    folder.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = f"""ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""
    client = f"""Host box
HostName 127.0.0.1
Port {port}
User {getpass.getuser()}
IdentityFile {folder}/user
IdentitiesOnly yes
UserKnownHostsFile {folder}/known
"""
    key = (folder / "host.pub").read_text(encoding="utf-8").split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n", encoding="utf-8")
    (folder / "server").write_text(server, encoding="utf-8")
    (folder / "client").write_text(client, encoding="utf-8")
    write_program(folder / "ssh", f'exec {shutil.which("ssh")} -F {folder}/client "$@"')
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "server")], stderr=log)
    try:
        while subprocess.run([str(folder / "ssh"), *BATCH, "box", "true"], capture_output=True).returncode:
            if process.poll() is not None:
                pytest.skip(f"sshd does not start here: {(folder / 'log').read_text(encoding='utf-8').strip()}")
            time.sleep(0.1)
        yield folder
    finally:
        process.terminate()
        process.wait()


def write_stand_in_ssh(folder: Path) -> None:
    """Write an `ssh` that runs what it is asked here, as sshd does, for any machine but "nowhere" and "closed"."""
    write_program(
        folder / "ssh",
        """while [ "$1" != -- ]; do shift; done
case "$2" in
nowhere) echo "ssh: Could not resolve hostname nowhere" >&2; exit 255;;
closed) echo "me@closed: Permission denied (publickey,password)." >&2; exit 255;;
esac
exec sh -c "$3" """,
    )


def write_program(path: Path, text: str) -> None:
    """Write lines of sh as a program."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
