"""Two `torchrun` agents on loopback stand for two machines: they do what one does, stop at SLURM's warning, go on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from artifacts.checkpoint import load_checkpoint
from common.paths import ROOT

CLUSTER = ROOT / "docs" / "cluster.md"
PATIENCE_S = 120
ConfigMaker = Callable[..., Path]


def script() -> str:
    """Return the SLURM script of docs/cluster.md."""
    found = re.search(r"```bash\n(.*?)```", CLUSTER.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def signals_of_the_script() -> str:
    """Return the signals that the script of docs/cluster.md lets torchrun pass on."""
    found = re.search(r"--signals-to-handle (\S+)", script())
    assert found
    return found[1]


def agents(config: Path, count: int = 2) -> list[subprocess.Popen[str]]:
    """Start an agent for each machine, as the script of docs/cluster.md does, with one process each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        end = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", str(count), "--nproc_per_node", "1"),
        *("--rdzv_backend", "c10d", "--rdzv_endpoint", end, "--rdzv_id", "7", "--local_addr", "127.0.0.1"),
        *("--signals-to-handle", signals_of_the_script(), "train.py", "--config", str(config)),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return [subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=pipe, stderr=pipe) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_two_machines_equal_one_and_go_on_after_the_warning(make_config: ConfigMaker, dataset: Path) -> None:
    """Warned in the middle, resumed by one process, they end where one process ends that was never warned."""
    changes = {
        "model_module_name": "squeezenet_module", "model_net_name": "squeezenet1_1",
        "model_args": {"dropout": 0.0}, "img_height": 32, "img_width": 32, "learning_rate": 1e-3, "num_epochs": 6,
        "save_interval_steps": 1,
    }  # fmt: skip
    weights = dataset / "weights"
    one = ["--config", str(make_config(**changes, batch_size=8))]
    assert train.main([*one, "--set", f"save_path={dataset / 'one'}"]) == 0
    expected = load_checkpoint(dataset / "one" / "net_last.pth")

    running = agents(make_config(**changes, batch_size=4))
    deadline = time.monotonic() + PATIENCE_S
    while not (weights / "net_last.pth").is_file():
        assert all(agent.poll() is None for agent in running) and time.monotonic() < deadline
        time.sleep(0.02)
    for agent in running:
        agent.send_signal(signal.SIGUSR1)
    captured = [agent.communicate(timeout=PATIENCE_S) for agent in running]
    assert all(agent.returncode for agent in running), captured
    assert sum("2 processes" in out for out, _ in captured) == 1  # rank 0 logs for all
    assert sum("interrupted by SIGUSR1" in out for out, _ in captured) == 1, captured
    stopped = load_checkpoint(weights / "net_last.pth").progress
    assert 0 < stopped["step"] < expected.progress["step"]

    assert train.main(["--config", str(make_config(**changes, batch_size=8)), "--resume"]) == 0
    ended = load_checkpoint(weights / "net_last.pth")
    assert max(float((value - ended.net[name]).abs().max()) for name, value in expected.net.items()) < 1e-4
    assert [point["top1"] for point in ended.progress["curves"]["val"]] == [
        point["top1"] for point in expected.progress["curves"]["val"]
    ]
    assert int(ended.progress["best_result"]["cells"][:, 2].sum()) == 9


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("step", "is_warned", "code", "is_requeued"),
    [
        ("trap 'touch notified; exit 9' USR1; touch started; while :; do sleep 0.05; done", True, 9, True),
        ("trap 'touch notified; exit 0' USR1; touch started; while :; do sleep 0.05; done", True, 0, False),
        ("touch started; exit 2", False, 2, False),
        ("touch started", False, 0, False),
    ],
    ids=["warned", "done when warned", "failed", "done"],
)
def test_the_script_queues_itself_again_after_a_warning_alone(
    tmp_path: Path, step: str, is_warned: bool, code: int, is_requeued: bool
) -> None:
    """With stand-ins for SLURM's commands; srun's is the training."""
    for name, text in (("srun", f'echo "$@" > asked; {step}'), ("scontrol", 'echo "$@" >> controlled; echo first')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "logs/flowers").mkdir(parents=True)
    (tmp_path / "logs/flowers/flowers_last.pth").touch()
    (tmp_path / "train.slurm").write_text(script(), encoding="utf-8")
    slurm = {"JOB_ID": "42", "JOB_NODELIST": "first,second", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "8"}
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **{f"SLURM_{name}": value for name, value in slurm.items()}}
    job = subprocess.Popen(["bash", "train.slurm"], cwd=tmp_path, env=env)
    while is_warned and not (tmp_path / "started").exists():
        time.sleep(0.02)
    if is_warned:
        job.send_signal(signal.SIGUSR1)
    assert job.wait(PATIENCE_S) == code
    assert (tmp_path / "notified").exists() == is_warned
    asked = (tmp_path / "asked").read_text(encoding="utf-8").split()
    assert asked[-4:] == ["train.py", "--config", "configs/flowers_config.json", "--resume"]
    assert (
        asked[asked.index("--rdzv_endpoint") + 1] == "first:29500" and asked[asked.index("--nproc_per_node") + 1] == "8"
    )
    assert ("requeue 42" in (tmp_path / "controlled").read_text(encoding="utf-8")) == is_requeued
