"""The platform's training: from traincfg.json and its data to a complete `output/`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.atomic_io import ResultsError, writing
from common.errors import UserError
from common.file_lock import lock_file
from common.formatting import first_line
from common.paths import ROOT
from common.signals import Stopped, ended_by_signals
from configs.schema import Config
from platforms.base import PlatformError, TrainingFailedError, warn, write_text
from platforms.pie_engine.addresses import Addresses, AddressStream
from platforms.pie_engine.classes import NetClasses
from platforms.pie_engine.dataset import band_keys, check_data
from platforms.pie_engine.errors import RequestError
from platforms.pie_engine.files import CLASSES, CONFIG, FILES, LOG, OUTPUT, TrainLog, clear, description, process_line
from platforms.pie_engine.nets import Net, find_net
from platforms.pie_engine.places import WORK, data_place, find_resume, find_source, is_remote
from platforms.pie_engine.recipe import make_config, usable_gpus
from platforms.pie_engine.storage import LOCAL, SCHEME
from platforms.pie_engine.traincfg import TrainRequest, Values, read_request, read_values

EXPORTS = ("onnx",)
LOCK = WORK / "lock"
SIGNALS = range(129, 193)  # exit codes of a training that a signal ended
WORKER = "--worker"

PrintLine = Callable[[str], None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """What is to be trained, once all of it was checked.

    `bands` are the config's keys for pictures of bands, `resume` is a file of weights, "" for none.
    """

    request: TrainRequest
    task: str
    net: Net
    data: Path
    classes: NetClasses
    bands: dict[str, Any]
    resume: str


def run_training(file: Path, addresses: Addresses) -> int:
    """Train what a traincfg.json asks for, in the current folder; return 0. Raises UserError, TrainingFailedError.

    The addresses of what is fetched from a store are added to `addresses`.
    """
    output = Path(OUTPUT).absolute()
    with lines_only(addresses) as print_line, alone(LOCK), ended_by_signals():
        log = TrainLog(output / LOG)
        try:
            values = read_values(file)
        except RequestError:
            clear(output, keep=[file])
            log.write()
            raise
        given = values.get("training_id")
        log.training_id = str(given) if isinstance(given, str | int | float) else ""
        if problem := data_in_output(values, output):
            output.mkdir(exist_ok=True)
            log.write()
            raise RequestError([problem])
        clear(output, keep=[file, *local_resume(values)])
        log.write()
        plan = prepare(values, addresses)
        log.description = description(plan.task)
        log.write()
        config = config_of(plan, output)
        train(config, session_of(plan, output), print_line, addresses)
        finish(config, log.path, print_line)
    return 0


def prepare(values: Values, addresses: Addresses) -> Plan:
    """Check the request and its data. Raises RequestError with all mistakes that can be found at once.

    Data in a store are fetched once the request has no mistake.
    """
    problems: list[str] = []

    def checked(check: Callable[[], Result]) -> Result | None:
        try:
            return check()
        except RequestError as error:
            problems.extend(error.problems)
        except OSError as error:  # a path that the system does not take
            problems.append(f"{error.filename}: {error.strerror or error}")
        return None

    request = checked(lambda: read_request(values))
    for line in request.notes if request else ():
        note(line)
    source = checked(lambda: find_source(values))
    task = checked(source.task) if source else None
    resume = checked(lambda: find_resume(values))
    net, name = None, values.get("model_name")
    if task and isinstance(name, str) and name:
        net, problem = find_net(task, name)
        problems += [problem] if problem else []
    classes = bands = data = None
    if request and source and task and (source.is_local or not problems):
        data = source.folder(note)
        if not source.is_local:
            addresses[str(data)] = source.name.rstrip("/")
        if resume and is_remote(request.resume_path):
            addresses[resume] = request.resume_path
        classes = checked(lambda: check_data(data, task, request, note))
        bands = checked(lambda: band_keys(data, task, note)) if classes else None
    if problems:
        raise RequestError(list(dict.fromkeys(problems)))
    assert request and source and task and net and data and classes and bands is not None and resume is not None
    note(f"{source.name}: {task.replace('_', ' ')}, {net.keys['model_net_name']}, {len(classes.classes)} classes")
    if net.is_another:
        note(f"note: {request.model_name} is our own single-stage detector here, not the published net of that name")
    return Plan(request, task, net, data, classes, bands, resume)


def config_of(plan: Plan, output: Path) -> Config:
    """Return the checked config; it and its classes are written, for train.py. Raises UserError."""
    write_text(output / FILES / CLASSES, plan.classes.json_text())
    gpus = usable_gpus(plan.request.gpu_num, note)
    count = len(plan.classes.classes)
    config = make_config(plan.request, plan.task, plan.net, plan.data, count, output, gpus, plan.bands)
    write_text(output / FILES / CONFIG, json.dumps(config.model_dump(), indent=1) + "\n")
    return config


def session_of(plan: Plan, output: Path) -> dict[str, str]:
    """Return what the hooks of every process need to know."""
    names = {"model_name": plan.request.model_name, "resume": plan.resume}
    return {"output": str(output), "log": str(output / LOG), **names}


def train(config: Config, session: dict[str, str], print_line: PrintLine, addresses: Addresses) -> None:
    """Train in this process, or in one for each GPU. Raises UserError, TrainingFailedError, Stopped."""
    from trainers.runner import processes_wanted
    from trainers.runtime.distributed import launch

    count = processes_wanted(config)
    if count == 1:
        code = train_rank(config, session, print_line)
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "worker.json"
            values = {"config": config.model_dump(), "session": session, "addresses": addresses, "parent": os.getpid()}
            file.write_text(json.dumps(values), encoding="utf-8")
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            code = launch(["-m", "platforms.pie_engine", WORKER, str(file)], count)
    if code in SIGNALS:
        raise Stopped(code - 128)
    if code == UserError.exit_code:  # a worker has printed it
        raise PlatformError("the training ended, see the lines above")
    if code:
        raise TrainingFailedError("the training failed, see the lines above", code)


def train_rank(config: Config, session: dict[str, str], print_line: PrintLine) -> int:
    """Be one process of a training; return its exit code."""
    from platforms.pie_engine.hooks import PlatformHooks, Session
    from trainers.runner import run_rank
    from trainers.runtime.distributed import world_from_environment

    hooks = PlatformHooks(Session(**session), print_line)
    return run_rank(config, world_from_environment(), resume=False, hooks=hooks)


def run_worker(file: Path, addresses: Addresses) -> int:
    """Be one of several processes, as the file says that `train` has written."""
    values = json.loads(file.read_text(encoding="utf-8"))
    end_with(values["parent"])
    addresses.update(values["addresses"])
    with lines_only(addresses) as print_line:
        return train_rank(Config.model_validate(values["config"]), values["session"], print_line)


def finish(config: Config, log: Path, print_line: PrintLine) -> None:
    """Export the best net, and print the last line. Raises ResultsError, and ExportError for a full disk.

    Whatever else becomes of the export is only a warning: the training and all that the platform shows are complete.
    """
    from artifacts.archive import remove_backups
    from artifacts.formats import REPORT
    from deploy.export.exporter import export_formats
    from deploy.export.request import ExportRequest
    from deploy.export.staging import raise_disk_error

    folder, weights = Path(config.save_path), config.best_checkpoint()
    remove_backups(config.last_checkpoint())
    config.last_checkpoint().unlink(missing_ok=True)  # three times the size, and of no use to a finished training
    if not (folder / "report.html").is_file():  # the last to be written
        raise ResultsError(f"{folder}: the report could not be written, see the lines above")
    try:
        if export_formats(ExportRequest(weights=weights, formats=EXPORTS, output_dir=folder, device="cpu")):
            warn(f"an export was refused, see {folder / REPORT}; the checkpoint itself is complete")
    except Exception as error:
        raise_disk_error(error, folder / "model.onnx")
        warn(f"the net was not exported, its checkpoint is complete: {first_line(error)}")
    print_line(process_line(len(TrainLog.read(log).epochs), config.num_epochs))


@contextlib.contextmanager
def lines_only(addresses: Addresses) -> Iterator[PrintLine]:
    """Send what is printed to the standard error; yield what prints a line to the real standard output.

    What came from a store is called by its address there.
    """
    stdout = sys.stdout

    def print_line(text: str) -> None:
        print(text, file=stdout, flush=True)

    stderr: Any = AddressStream(sys.stderr, addresses)
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stderr):
        yield print_line


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Keep another training of this folder out. Raises PlatformError where one is running, ResultsError."""
    with writing(lock.parent.absolute()):
        lock.parent.mkdir(exist_ok=True)
    try:
        with lock_file(lock):
            yield
    except BlockingIOError as error:
        raise PlatformError(f"{Path.cwd()}: another training is running in this folder; wait for it") from error


def data_in_output(values: Values, output: Path) -> str:
    """Return a sentence where the data lie in the output folder, which would be cleared; else ""."""
    try:
        place = data_place(values)
        folder = os.path.realpath(place.removeprefix(f"{SCHEME}{LOCAL}"))
    except ValueError:  # a RequestError or a NUL, which are told later
        return ""
    if not Path(folder).is_relative_to(os.path.realpath(output)):
        return ""
    return f"{place}: the data are in {OUTPUT}/, which every training clears; move them out of it"


def local_resume(values: Values) -> list[Path]:
    """Return the local file that a training starts from, which must not be cleared away."""
    if is_remote(str(values.get("resume_path"))):
        return []
    try:
        resume = find_resume(values)
    except (RequestError, OSError):  # told later
        return []
    return [Path(resume)] if resume else []


def end_with(parent: int) -> None:
    """Let this process end with its parent, also where that was killed.

    The next training would write the same files.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def note(text: str) -> None:
    """Print a line for the user."""
    print(text, file=sys.stderr, flush=True)
