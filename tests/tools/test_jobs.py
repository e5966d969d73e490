"""Jobs over ssh, here, by sbatch and by a script of the user's own: submitted, watched, stopped, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from projects.book import Book
from projects.models import Run
from tests.helpers.jobs import commit_all, write_program, write_stand_in_ssh
from tools import antgo

PATIENCE_S = 300
# An experiment that counts its starts, and waits for SIGTERM while there is a file "wait" in the folder of the test.
COUNTS = """import signal, sys, time
from pathlib import Path
root, here = Path(sys.argv[sys.argv.index("--root") + 1]), Path({here!r})
print("flags", *sys.argv[1:], flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
latest = root / "small/output/checkpoint/latest.pth"
latest.parent.mkdir(parents=True, exist_ok=True)
latest.write_bytes((latest.read_bytes() if latest.exists() else b"") + b"1")
(here / "started").touch()
while (here / "wait").exists():
    time.sleep(0.05)
metric = root / "small/output/metric"
metric.mkdir(exist_ok=True)
(metric / "best.pth").touch()
(metric / "best.json").write_text('{{"score": {{"top_1": 0.5}}}}')
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a repository with an experiment "small" of a project "birds", and go there."""
    folder = tmp_path / "my code"
    commit_all(folder, {"small/main.py": COUNTS.format(here=str(tmp_path)), ".gitignore": "secret.txt\n"})
    (folder / "secret.txt").touch()
    monkeypatch.chdir(folder)
    run("create project --git git@host:team/birds.git")
    run("create exp --name small")
    return folder


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for jobs on a machine "box", this one by a stand-in for ssh."""
    write_stand_in_ssh(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "job s"


def run(words: str, *flags: str) -> None:
    assert antgo.main([*words.split(), *flags]) == 0


def refused(words: str, *flags: str) -> int:
    try:
        return antgo.main([*words.split(), *flags])
    except SystemExit as error:  # argparse
        return int(error.code or 0)


def register(folder: Path, **changes: Any) -> None:
    setup = Path("../setup.sh")
    setup.write_text(f"export PYTHON='{sys.executable}' OMP_NUM_THREADS=1\ncd /\n", encoding="utf-8")
    config = {"config": {"ip": "box", "folder": str(folder)}, "script": str(setup), **changes}
    Path("../ssh.yaml").write_text(json.dumps(config), encoding="utf-8")
    run("submitter update --ssh --config ../ssh.yaml")


def entered(number: int = -1) -> Run:
    return Book().read("birds").exp["small"][number]


def wait_for(state: str, number: int = -1) -> Run:
    end = time.monotonic() + PATIENCE_S
    while True:
        run("ls")
        if entered(number).state == state:
            return entered(number)
        assert time.monotonic() < end, entered(number)
        time.sleep(0.1)


def wait_for_file(path: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)


def test_a_job_over_ssh_comes_back_and_is_stopped_and_goes_on(
    work: Path, box: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    register(box)
    (tmp_path / "wait").touch()
    Path("../my.json").write_text("{}")
    capfd.readouterr()
    run("train --exp small --project birds --ssh --gpu-id -1 --config ../my.json --", "--set", "a= b")
    submitted = entered()
    assert capfd.readouterr().out.splitlines()[-1] == submitted.id
    there, here = box / "birds" / submitted.id, Path(submitted.root)
    assert submitted.state == "queued" and submitted.commit and "+" not in submitted.commit
    wait_for_file(tmp_path / "started")
    assert wait_for("running").finish_time == "" and (there / "RUNNING").is_file() and (here / "RUNNING").is_file()
    assert sorted(path.name for path in (there / "code").iterdir()) == [".gitignore", "small"]
    assert (there / "trainer/tools/projects/runner.py").is_file() and not (there / "trainer/tests").exists()
    assert refused(f"train --exp small --resume --id {submitted.id}") == 2
    assert f"birds: small.{submitted.id} is running" in capfd.readouterr().err
    run(f"stop --id {submitted.id}")
    assert (wait_for("stop").metric, (here / "STOP").is_file()) == ({}, True)
    assert json.loads((here / "state.json").read_text(encoding="utf-8"))["exit_code"] == 143
    assert (here / "small/output/checkpoint/latest.pth").read_bytes() == b"1"
    assert refused(f"stop --id {submitted.id}") == 2

    (tmp_path / "wait").unlink()
    run(f"train --exp small --resume --id {submitted.id}")
    ended = wait_for("finish")
    assert ended.metric["score"] == {"top_1": 0.5} and ended.checkpoint == str(here / "small/output/metric/best.pth")
    assert (here / "small/output/checkpoint/latest.pth").read_bytes() == b"11"
    capfd.readouterr()
    run(f"log --id {submitted.id}")
    flags = f"--exp small --process train --gpu-id -1 --set a= b --root {there} --config {there}/config.json"
    log = capfd.readouterr().out.splitlines()
    assert [line for line in log if line.startswith("flags")] == [
        f"flags {flags}",
        f"flags {flags} --resume-from {there}/small/output/checkpoint/latest.pth",
    ]


def test_a_plan_does_nothing_and_a_dirty_repository_is_refused(
    work: Path, box: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    register(box)
    Path("small/new.py").touch()
    assert refused("train --exp small --project birds --ssh") == 2
    message = "my code: 1 file not as committed (small/new.py); commit them, or send and record them with --dirty"
    assert message in capfd.readouterr().err
    run("train --exp small --project birds --ssh --dirty --dry_run")
    out = capfd.readouterr().out
    assert "  small/main.py\n  small/new.py (changed)\n" in out and "secret" not in out
    assert "box:" in out and "--- job.sh" in out and out.endswith("--- then: sh job.sh\n")
    assert Book().read("birds").exp["small"] == [] and not box.exists() and not Path("output").exists()
    run("train --exp small --project birds --ssh --dirty")
    record = json.loads(Path(entered().root, "code.json").read_text(encoding="utf-8"))
    assert record["changed"] == ["small/new.py"] and record["commit"] == entered().commit
    assert Path(entered().root, "sent.tar.gz").is_file()
    wait_for("finish")


def test_a_job_here_whose_runner_was_killed(work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its training holds the lock: no second one writes the same files."""
    (tmp_path / "wait").touch()
    run("train --exp small --project birds --local --gpu-id -1")
    wait_for_file(tmp_path / "started")
    running = wait_for("running")
    pid = json.loads(Path(running.root, "state.json").read_text(encoding="utf-8"))["pid"]
    os.kill(pid, signal.SIGKILL)
    state = json.loads(Path(running.root, "state.json").read_text(encoding="utf-8"))
    Path(running.root, "state.json").write_text(json.dumps({**state, "time": state["time"] - 601}), encoding="utf-8")
    run("ls")
    assert f"{running.id}  lost" in capfd.readouterr().out
    assert refused(f"train --exp small --resume --id {running.id}") == 2
    assert "a training of this job is still running" in capfd.readouterr().err
    (tmp_path / "wait").unlink()
    wait_for_file(Path(running.root, "small/output/metric/best.json"))
    while refused(f"train --exp small --resume --id {running.id}"):
        time.sleep(0.1)
    capfd.readouterr()
    run(f"log --id {running.id}")  # until it ends
    starts = [line for line in capfd.readouterr().out.splitlines() if line.startswith("flags")]
    assert len(starts) == 2 and Path(running.root, "FINISH").is_file()
    assert wait_for("finish").metric["score"] == {"top_1": 0.5}
    assert Path(running.root, "small/output/checkpoint/latest.pth").read_bytes() == b"11"


def test_a_job_of_slurm_and_one_of_an_own_script(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By stand-ins: sbatch runs the script at once, the own script what it is given."""
    run("update project/submitter --cpu 4 --memory 8000")
    write_program(tmp_path / "bin/sbatch", f'echo "$@" > {tmp_path}/asked; nohup bash "$2" > out 2>&1 & echo "42;here"')
    write_program(tmp_path / "bin/squeue", "echo PENDING")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    run("train --exp small --project birds --slurm --gpu-id 0,1")
    ended = wait_for("finish")
    folder = Path(ended.root)
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "--parsable slurm.sh\n"
    assert json.loads((folder / "job.json").read_text(encoding="utf-8"))["handle"] == "42"
    lines = (folder / "slurm.sh").read_text(encoding="utf-8").splitlines()
    for line in ("gpus-per-node=2", "cpus-per-task=4", "mem=8000M", "signal=B:USR1@120", "requeue"):
        assert f"#SBATCH --{line}" in lines

    asked = 'printf "%s\\n" "$#" "$@" > asked; sh -c "$2" > /dev/null 2>&1 & echo told; echo " job-7 "'
    write_program(tmp_path / "own/submit.sh", asked)
    write_program(tmp_path / "own/stop.sh", f'echo "$1" > {tmp_path}/stopped')
    Path("../own.yaml").write_text(f"folder: {tmp_path}/own\nscript: submit.sh\nstop: stop.sh\n", encoding="utf-8")
    run("submitter --config ../own.yaml")
    (tmp_path / "wait").touch()
    (tmp_path / "started").unlink()
    run("train --exp small --project birds --gpu-id 0")
    folder = Path(entered().root)
    given = (folder / "code/asked").read_text(encoding="utf-8").splitlines()
    assert given == ["5", "", f"sh '{folder}/job.sh'", "1", "4", "8000M"]
    assert json.loads((folder / "job.json").read_text(encoding="utf-8"))["handle"] == "job-7"
    wait_for_file(tmp_path / "started")
    run(f"stop --id {entered().id}")
    assert (tmp_path / "stopped").read_text(encoding="utf-8") == "job-7\n"
    (tmp_path / "wait").unlink()
    assert wait_for("finish").metric["score"] == {"top_1": 0.5}

    status = "status: status.sh"
    Path("../own.yaml").write_text(f"folder: {tmp_path}/own\nscript: submit.sh\n{status}\n", encoding="utf-8")
    run("submitter --config ../own.yaml")
    write_program(tmp_path / "own/submit.sh", "echo 8")
    write_program(tmp_path / "own/status.sh", f'echo "job $1"; cat {tmp_path}/state')
    run("train --exp small --project birds")
    for state, known in (("queued", "queued"), ("running", "running"), ("odd", "running"), ("stop", "stop")):
        (tmp_path / "state").write_text(state, encoding="utf-8")
        assert refused("ls") == (state == "odd") and entered().state == known
    assert 'the script "status" must print queued, running, finish, stop, got "odd"' in capfd.readouterr().err

    write_program(tmp_path / "own/submit.sh", "echo no room here >&2; exit 4")
    assert refused("train --exp small --project birds") == 2
    assert "submit.sh: exit code 4: no room here" in capfd.readouterr().err
    assert entered().state == "stop"


def test_slurm_warns_and_the_job_saves_and_queues_itself_again(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(tmp_path / "bin/sbatch", 'setsid nohup bash "$2" > out 2>&1 & echo $!')
    write_program(tmp_path / "bin/squeue", "echo PENDING")
    write_program(tmp_path / "bin/scancel", f'echo "$1 $2" > {tmp_path}/asked; kill -TERM "$3"')
    write_program(tmp_path / "bin/scontrol", f'echo "$@" > {tmp_path}/asked')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    (tmp_path / "wait").touch()
    main = Path("small/main.py")
    main.write_text(main.read_text(encoding="utf-8").replace("SIGTERM", "SIGUSR1"), encoding="utf-8")
    run("train --exp small --project birds --slurm --dirty")
    wait_for_file(tmp_path / "started")
    batch = int(json.loads(Path(entered().root, "job.json").read_text(encoding="utf-8"))["handle"])
    os.kill(batch, signal.SIGUSR1)
    wait_for_file(tmp_path / "asked")
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "requeue 42\n"
    assert wait_for("stop").checkpoint == ""
    (tmp_path / "wait").unlink()
    subprocess.run(["bash", "slurm.sh"], cwd=entered().root, check=True)  # as SLURM does
    assert wait_for("finish").checkpoint and entered().metric["score"] == {"top_1": 0.5}

    (tmp_path / "wait").touch()
    (tmp_path / "started").unlink()
    main.write_text(main.read_text(encoding="utf-8").replace("SIGUSR1", "SIGTERM"), encoding="utf-8")
    run("train --exp small --project birds --slurm --dirty")
    wait_for_file(tmp_path / "started")
    run(f"stop --id {entered().id}")
    assert wait_for("stop").metric == {}
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "--batch --signal=TERM\n"


def test_a_job_of_slurm_that_was_cancelled_while_it_waited(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What its queue says of it counts, for its folder says nothing; accounting tells a completed one."""
    for name, text in {
        "sbatch": "echo 42",
        "squeue": f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/queue',
        "sacct": f'[ "$4" = --jobs=42 ] && cat {tmp_path}/accounts',
    }.items():
        write_program(tmp_path / "bin" / name, text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    run("train --exp small --project birds --slurm")
    name = f"small-{entered().id}"
    assert refused("ls") == 1 and "squeue --noheader: exit code 1: cat:" in capfd.readouterr().err
    assert entered().state == "queued"
    for queue, accounts, state in (
        *(("PENDING\n", "", "queued"), ("", " COMPLETED \n", "queued"), ("", "CANCELLED by 1000\n", "stop")),
    ):
        (tmp_path / "queue").write_text(queue, encoding="utf-8")
        (tmp_path / "accounts").write_text(accounts, encoding="utf-8")
        run("ls")
        assert entered().state == state
    assert (tmp_path / "asked").read_text(encoding="utf-8") == f"--noheader --me --format=%T --name={name}\n"
    run(f"train --exp small --resume --id {entered().id}")
    (tmp_path / "accounts").unlink()  # no accounting is kept
    run("ls")
    assert entered().state == "stop"


@pytest.mark.parametrize("method", ["local", "ssh"])
def test_a_job_that_never_began(
    method: str, work: Path, box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins at once, or, ten minutes later, it never will."""
    register(box)
    monkeypatch.setattr("projects.remote_run.launch_command", lambda job: "true")
    run(f"train --exp small --project birds --{method}")
    run("ls")
    assert entered().state == "queued"
    job = Path(entered().root, "job.json")
    os.utime(job, (time.time() - 601, time.time() - 601))
    run("ls")
    assert entered().state == "stop"


def test_a_trainjob_that_was_deleted_or_has_failed(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shared"
    config = {"image": "i", "folder": str(folder), "volume": "v"}
    Path("../k.yaml").write_text(json.dumps(config), encoding="utf-8")
    run("submitter update --kubernetes --config ../k.yaml")
    write_program(tmp_path / "bin/kubectl", f'[ "$1" != get ] || cat {tmp_path}/known')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    failed = {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    for known in ("", json.dumps(failed)):
        run("train --exp small --project birds --kubernetes")
        for waiting in ('{"status": {}}', '{"status": {"conditions": [{"type": "Suspended", "status": "True"}]}}'):
            (tmp_path / "known").write_text(waiting, encoding="utf-8")
            run("ls")
            assert entered().state == "queued"
        (tmp_path / "known").write_text(known, encoding="utf-8")
        run("ls")
        assert entered().state == "stop"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("submitter update --ssh --config password.yaml", 'password.yaml: password must be "": jobs log in with keys'),
        (
            "submitter update --ssh --config closed.yaml",
            "closed: me@closed: Permission denied (publickey,password).; it",
        ),
        ("submitter update --ssh --config nowhere.yaml", "nowhere: ssh: Could not resolve hostname nowhere"),
        ("submitter update --ssh --config flag.yaml", "flag.yaml: config.ip: string should match pattern"),
        ("submitter update --ssh --config typo.yaml", 'typo.yaml: unknown key "usrename"; did you mean "username"?'),
        ("submitter update --ssh --config script.yaml", "script.yaml: script: nope.sh: no such file"),
        ("submitter update --ssh --config nope.yaml", "nope.yaml: cannot read it: No such file"),
        ("submitter update --ssh --config bad.yaml", "bad.yaml: not YAML: while parsing"),
        ("submitter select --ssh --ip bix", 'submitter: no address "bix"; did you mean "box"?'),
        ("submitter template --ssh --tgt .", "ssh-submit-config.yaml: it is there already"),
        ("submitter updtae", '"submitter updtae" is no command; did you mean "update"?'),
        ("train --exp small --slurm", "sbatch: there is no such program here; install it, or read what would be"),
        ("train --exp small --kubernetes", "kubernetes is not registered: submitter template --kubernetes, then"),
        ("train --exp smal --ssh", 'smal/main.py: the experiment is not here; did you mean "small"?'),
        ("train --exp other --ssh", 'birds: no experiment "other"; there are small'),
        ("train --exp small --ssh --config nope.json", "nope.json: cannot read it: No such file or directory"),
        ("train --exp small --dry_run", "--dirty and --dry_run are for jobs; add --local, --ssh or another method"),
        ("train --exp small --ssh --slurm", "argument --slurm: not allowed with argument --ssh"),
        ("train --exp small --resume", "name the run that is to go on with --resume and --id"),
        ("train --exp small --resume --id 1", 'birds: no run "1"; there are here'),
        ("train --exp small --resume --id here --ssh", "--resume goes on with what was sent; leave all flags out but"),
        ("train --exp small --resume --id here", "birds: small.here is no job that was sent; main.py --resume-from"),
        ("stop --id here", "birds: small.here is no job but trains here: press Ctrl-C where it runs"),
        ("log --id 1", 'runs/projects: no run "1"; there are here'),
        ("stop --id 1 --project birds", 'birds: no run "1"; there are here'),
    ],
)
def test_mistakes(
    work: Path,
    box: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: str,
    message: str,
) -> None:
    register(box)
    run("submitter template --ssh")
    commit_all(work, {"other/main.py": ""})
    with Book().changing("birds") as project:
        project.exp["small"].append(Run(exp="small", id="here", state="finish"))
    for name, config in {
        "password": {"ip": "box", "password": "x"},
        "closed": {"ip": "closed"},
        "nowhere": {"ip": "nowhere"},
        "flag": {"ip": "-oProxyCommand=x"},
        "typo": {"ip": "box", "usrename": "me"},
        "script": {"ip": "box"},
    }.items():
        script = "nope.sh" if name == "script" else ""
        Path(f"{name}.yaml").write_text(json.dumps({"config": config, "script": script}), encoding="utf-8")
    Path("bad.yaml").write_text("config: [", encoding="utf-8")
    for name in ("git", "sh", "tar", "gzip", "mkdir", "mv", "rm"):  # and no sbatch, which would be asked
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    before = Path("runs/projects/submitters/submitters.json").read_bytes()
    if words.startswith("train"):
        words += " --project birds"
        commit_all(work)
    capfd.readouterr()
    assert refused(words) == 2
    assert message in capfd.readouterr().err
    assert Path("runs/projects/submitters/submitters.json").read_bytes() == before


def test_a_machine_that_is_gone(
    work: Path, box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was submitted keeps its state; what could not be is stopped, or lost where the command was killed."""
    register(box)
    (tmp_path / "wait").touch()
    run("train --exp small --project birds --ssh")
    wait_for_file(tmp_path / "started")
    wait_for("running")
    with monkeypatch.context() as patch:
        write_program(tmp_path / "gone/ssh", "echo no route to box >&2; exit 255")
        patch.setenv("PATH", f"{tmp_path / 'gone'}:{os.environ['PATH']}")
        capfd.readouterr()
        assert refused("ls") == 1
        shown = capfd.readouterr()
        assert f"birds: small.{entered(0).id}: box: no route to box" in shown.err and "running" in shown.out
        assert refused("train --exp small --project birds --ssh") == 2
        assert (entered(0).state, entered().state) == ("running", "stop")
        assert refused(f"train --exp small --project birds --resume --id {entered().id}") == 2
        assert entered().state == "stop"
        (tmp_path / "wait").unlink()
    wait_for_file(box / "birds" / entered(0).id / "FINISH")
    broken = tmp_path / "broken/ssh"
    write_program(
        broken,
        f"""case "$*" in *"tar -cf"*) echo broken pipe >&2; exit 255;; esac
exec {tmp_path}/bin/ssh "$@" """,
    )
    with monkeypatch.context() as patch:  # what has not come back is asked for again
        patch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
        assert refused("ls") == 1 and entered(0).state == "running"
    assert wait_for("finish", 0).metric["score"] == {"top_1": 0.5}
    (box / "birds" / entered(0).id / "state.json").write_text('{"state": "finish", "pid": 1, "time": "x"}')
    with Book().changing("birds") as project:
        project.exp["small"][0].state = "running"
    assert refused("ls") == 1 and "state.json: it is no job's state" in capfd.readouterr().err
    with Book().changing("birds") as project:
        project.exp["small"].append(Run(exp="small", id="killed", state="queued", root=str(tmp_path / "nothing")))
    capfd.readouterr()
    run("ls")
    assert "killed               lost" in capfd.readouterr().out
    with Book().changing("birds") as project:
        project.submitter.method = "shh"
    assert refused("train --exp small --project birds") == 2
    assert 'birds: submitter: no method "shh"; did you mean "ssh"?' in capfd.readouterr().err


def test_addresses(work: Path, box: Path, capfd: pytest.CaptureFixture[str]) -> None:
    register(box)
    register(box, config={"ip": "bux", "username": "me", "port": 2222})
    capfd.readouterr()
    run("submitter ls --ssh")
    run("submitter activate --ssh --ip box")
    run("submitter ls")
    first, second, used, *again = capfd.readouterr().out.splitlines()
    assert (first, second) == (f"  box port 22, folder {box}", "* me@bux port 2222, folder ~") and used == "in use: box"
    assert again == [f"* box port 22, folder {box}", "  me@bux port 2222, folder ~"]
    run("submitter")
    text = Path("submit-config.yaml").read_text(encoding="utf-8")
    assert text == 'folder: ""\nscript: ""\nstatus: ""\nlog: ""\nstop: ""\n'
    run("submitter template --ssh")
    text = Path("ssh-submit-config.yaml").read_text(encoding="utf-8")
    assert (
        text == 'config:\n  username: ""\n  password: ""\n  ip: ""\n  port: 22\n  folder: ""\nscript: ""\nimage: ""\n'
    )


def test_manifests_are_submitted_and_shown(
    work: Path, box: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By stand-ins: kubectl runs the job's script as a pod would, sky copies its folder to a machine of that name."""
    run_it = f'case "$1" in apply) PYTHON={sys.executable} nohup sh job.sh > out 2>&1 & ;; esac'
    write_program(
        tmp_path / "bin/kubectl", f'[ "$1" != get ] || exec echo "{{}}"; echo "$@" >> {tmp_path}/asked; {run_it}'
    )
    copy = f"mkdir -p {tmp_path}/home && cp -r . {tmp_path}/home/sky_workdir"
    start = f"cd {tmp_path}/home/sky_workdir && PYTHON={sys.executable} nohup sh job.sh > out 2>&1 &"
    write_program(tmp_path / "bin/sky", f'echo "$@" >> {tmp_path}/asked; {copy}; {start}')
    (tmp_path / "home").mkdir()
    ssh = tmp_path / "bin/ssh"
    ssh.write_text(ssh.read_text(encoding="utf-8").replace("exec sh", f"cd {tmp_path}/home; exec sh"), encoding="utf-8")
    shared = {"image": "t:1", "folder": str(tmp_path / "shared"), "volume": "images", "queue": "team"}
    for method, config in (("kubernetes", shared), ("skypilot", {"accelerators": "H100"})):
        Path(f"../{method}.yaml").write_text(json.dumps(config), encoding="utf-8")
        run(f"submitter update --{method} --config ../{method}.yaml")
    capfd.readouterr()
    for method, line in (("kubernetes", "kueue.x-k8s.io/queue-name: team"), ("skypilot", "accelerators: H100:2")):
        run(f"train --exp small --project birds --gpu-id 0,1 --{method} --dry_run")
        assert line in capfd.readouterr().out
    assert not (tmp_path / "asked").exists() and not (tmp_path / "shared").exists()

    run("train --exp small --project birds --gpu-id 0,1 --kubernetes")
    first = wait_for("finish")
    assert first.metric["score"] == {"top_1": 0.5} and first.root.startswith(str(tmp_path / "shared/birds/small."))
    run("train --exp small --project birds --gpu-id 0,1 --skypilot")
    second = wait_for("finish")
    assert second.metric["score"] == {"top_1": 0.5} and Path(second.root, "log.txt").is_file()
    run(f"train --exp small --project birds --resume --id {first.id}")
    assert (tmp_path / "asked").read_text(encoding="utf-8").splitlines() == [
        "apply -f job.yaml",
        f"launch --yes --detach-run --cluster small-{second.id} job.yaml",
        "delete --ignore-not-found -f job.yaml",
        "apply -f job.yaml",
    ]
    wait_for("finish", 0)
