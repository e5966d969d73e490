"""Classify pictures with a trained net: `python inference.py --image_dir DIR`; nothing given: the classic start.

`--pytorch2onnx` and its like convert the net instead.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import DEFAULT_CONFIG, Config, process_config
from data_loader.samples import IMAGE_SUFFIXES, iter_images
from deploy.answers import Answer, ResultsFile, check_folder, check_results_path, open_results
from deploy.arguments import DEFAULT_IMAGES, DEFAULT_RESULT, make_parser
from deploy.lines import LineLayout, text_columns
from trainers.signals import StopRequest

if TYPE_CHECKING:
    from tqdm import tqdm

    from artifacts.facts import Facts
    from deploy.copies import AnnotatedCopies, SortedCopies
    from deploy.heatmaps import HeatMapCopies
    from deploy.predictor import Predictor
    from deploy.runtimes import Backend

    Copies = AnnotatedCopies | SortedCopies | HeatMapCopies

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class InferenceError(ValueError):
    """A mistake of the user's; the message is the sentence to show."""


@dataclass(frozen=True)
class Request:
    """What was asked, checked as far as it can be without the net."""

    weights: Path
    config: Config | None
    root: Path | None  # the image folder; None: one picture
    pictures: Iterator[str]
    output: Path | None
    save_images: Path | None
    heatmap: Path | None


@dataclass
class Tally:
    """What has become of the pictures so far, and why it ended before the last one, where it did."""

    answered: int = 0
    failed: int = 0
    problem: str = ""
    exit_code: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Classify or convert, and give the exit code.

    0 all answered or written, 1 some failed, 2 a mistake of the user, 3 a conversion was refused, 128 + n signal n.
    """
    args = make_parser().parse_args(argv)
    if sys.stdout is None:  # closed by whoever started it: the lines go nowhere
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console that lacks a letter is no reason to stop
    try:
        exit_code = convert(args) if conversions(args) else run(args, check(args))
        sys.stdout.flush()
        return exit_code
    except ValueError as error:  # every mistake of the user's is one, and its message the sentence to show
        print(f"inference.py: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        print(f"inference.py: {_refusal(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first picture, or pressed twice
        return 128 + signal.SIGINT


def check(args: argparse.Namespace) -> Request:
    """Check what was asked without torch. Raises ValueError with the sentence to show."""
    if args.heatmap_class is not None and args.heatmap is None:
        raise InferenceError("--heatmap_class goes with --heatmap DIR, the folder that the heat maps go to")
    classic = args.output is None and args.save_images is None and args.heatmap is None
    output = Path(DEFAULT_RESULT, "results.csv") if classic else args.output
    save_images = Path(DEFAULT_RESULT) if classic else args.save_images
    if output is not None:
        check_results_path(output)
    asked = args.image or args.image_dir or Path(DEFAULT_IMAGES)
    folders = {folder: what for folder, what in ((save_images, "copies"), (args.heatmap, "heat maps")) if folder}
    for folder, what in folders.items():
        check_folder(folder)
        if asked.resolve().is_relative_to(folder.resolve()):
            raise InferenceError(f"{asked}: it lies inside {folder}, where the {what} go; choose another folder")
    pictures = _one_picture(asked) if args.image else _pictures_below(asked, *folders)
    weights, config = _weights_and_config(args)
    return Request(weights, config, None if args.image else asked, pictures, output, save_images, args.heatmap)


def run(args: argparse.Namespace, request: Request) -> int:
    """Load the net, answer for every picture, tell the sum; give the exit code. Raises ValueError."""
    from artifacts.reading import TITLES, artifact_kind

    kind = artifact_kind(request.weights)  # a file that nothing loads is told before torch is there
    if request.heatmap is not None and kind != "checkpoint":
        from deploy.heatmaps import refuse_without_gradients

        refuse_without_gradients(request.weights, TITLES[kind])
    from deploy.backends import load_backend
    from deploy.predictor import Predictor

    backend, facts = load_backend(request.weights, device=args.device, config=request.config, runtime=args.runtime)
    _check_flags(args, request.weights, facts)
    is_bare = kind == "checkpoint" and not facts.weights_sha256
    if request.config is not None and not is_bare:
        _check_config(args.config or Path(DEFAULT_CONFIG), request.config, request.weights, facts)
    if is_bare:
        means, stds = (", ".join(f"{v:g}" for v in values) for values in (facts.preprocess.mean, facts.preprocess.std))
        print(
            f"inference.py: {request.weights} holds bare weights; taken from the config: mean {means}, std {stds}, "
            f"{facts.num_classes} classes ({facts.class_names[0]}, ...)",
            file=sys.stderr,
        )
    predictor = Predictor(backend, facts)
    copies = _copies(args, request, backend, facts)
    topk = min(args.topk, facts.num_classes)
    tally = Tally()
    started = time.perf_counter()
    with open_results(request.output, topk) if request.output else nullcontext() as results:
        _answer_all(args, request, predictor, results, copies, tally)
    rate = (tally.answered + tally.failed) / (time.perf_counter() - started)
    if tally.exit_code != EXIT_BROKEN_PIPE:
        sums = (
            f"{tally.answered} answered, {tally.failed} failed, {rate:.1f} images/s on {backend.name} {backend.device}"
        )
        print(_with_places(sums, _places(request)))
    if tally.problem:
        print(f"inference.py: {tally.problem}", file=sys.stderr)
    return tally.exit_code or (1 if tally.failed else 0)


def conversions(args: argparse.Namespace) -> list[str]:
    """Give the formats that the classic switches ask for."""
    return [name for name in ("json", "jit", "onnx") if getattr(args, f"pytorch2{name}")]


def convert(args: argparse.Namespace) -> int:
    """Write the net in other formats beside its weights; give the exit code, 3 where one was refused.

    Raises ValueError.
    """
    if args.output or args.save_images:
        raise InferenceError(
            "a conversion goes beside the weights and classifies nothing: leave out --output and "
            "--save_images, or use python -m deploy.export --output_dir DIR"
        )
    if args.heatmap or args.heatmap_class:
        raise InferenceError("a conversion makes no heat maps: leave out --heatmap and --heatmap_class")
    if args.image:
        raise InferenceError(f"{args.image}: one picture proves no conversion right; name a folder with --image_dir")
    if args.image_dir:
        next(_pictures_below(args.image_dir))
    weights, config = _weights_and_config(args)
    from artifacts.reading import artifact_kind

    if artifact_kind(weights) == "checkpoint":
        _check_flags_of_a_checkpoint(args, weights)
    from deploy.export import export_formats

    place = weights.parent
    return export_formats(weights, conversions(args), place, samples=args.image_dir, config=config, device=args.device)


def _answer_all(
    args: argparse.Namespace,
    request: Request,
    predictor: Predictor,
    results: ResultsFile | None,
    copies: Sequence[Copies],
    tally: Tally,
) -> None:
    """Answer for the pictures until they, or the patience of whoever started it, end; `tally` tells how it went."""
    from tqdm import tqdm

    terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    layout = LineLayout.of(predictor.facts.class_names, terminal)
    pictures = _until_unreadable(request.pictures, tally)
    answers = predictor.predict_files(pictures, args.batch_size, args.topk, args.workers)
    # The number of pictures is not known before the folder has been walked, so the bar counts without a percentage.
    with StopRequest() as stop, closing(answers), tqdm(unit=" images", disable=None, leave=False) as bar:
        try:
            for answer in answers:
                _record(answer, request.root, results, copies)
                tally.failed += bool(answer.error)
                tally.answered += not answer.error
                if answer.error or not args.quiet:
                    _say(layout.line(answer), bar)
                bar.update()
                if stop.received:
                    tally.exit_code = 128 + stop.received
                    break
        except BrokenPipeError:  # whoever read the lines has gone
            _forget_stdout()
            tally.exit_code = EXIT_BROKEN_PIPE
        except OSError as error:
            tally.problem, tally.exit_code = _refusal(error), 2
        except ValueError as error:  # the net or the disk failed: the results so far are kept
            if not tally.answered and not tally.failed:
                raise  # there are none: those of an earlier run stay
            tally.problem, tally.exit_code = str(error), 2


def _record(answer: Answer, root: Path | None, results: ResultsFile | None, copies: Sequence[Copies]) -> None:
    if results is not None:
        results.write(answer)
    path = Path(answer.file)
    for kind in copies:
        kind.add(answer, path.name if root is None else path.relative_to(root).as_posix())


def _say(line: str, bar: tqdm) -> None:
    if bar.disable:
        print(line)
    else:
        bar.write(line, file=sys.stdout)


def _places(request: Request) -> str:
    output = None if request.output and request.output.parent == request.save_images else request.output
    places = [place for place in (output, request.save_images, request.heatmap) if place is not None]
    return " and ".join(dict.fromkeys(map(str, places)))


def _with_places(sums: str, places: str) -> str:
    """Add where the results are: on a terminal that is too narrow, in a line of its own."""
    line = f"{sums}; results in {places}"
    if not places:
        return sums
    if sys.stdout.isatty() and text_columns(line) >= shutil.get_terminal_size().columns:
        return f"{sums}\nresults in {places}"
    return line


def _refusal(error: OSError) -> str:
    """Say what the system refused: a path that may not be entered, or, where it names none, stdout on a full disk."""
    if error.filename is None:
        _forget_stdout()
    return f"{error.filename or 'stdout'}: {error.strerror or error}"


def _forget_stdout() -> None:
    """Let what is still in stdout's buffer go nowhere, so that Python does not complain when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _copies(args: argparse.Namespace, request: Request, backend: Backend, facts: Facts) -> list[Copies]:
    """Make what gives pictures back. Raises ValueError where a heat map cannot be made."""
    from deploy.copies import AnnotatedCopies, SortedCopies

    made: list[Copies] = []
    if request.save_images is not None and args.save_as == "annotated":
        made.append(AnnotatedCopies(request.save_images, facts.preprocess.max_pixels))
    elif request.save_images is not None:
        made.append(SortedCopies(request.save_images, facts.class_names))
    if request.heatmap is not None:
        from deploy.backends import CheckpointBackend
        from deploy.heatmaps import HeatMapCopies, label_of

        assert isinstance(backend, CheckpointBackend)  # other kinds of files have been refused
        label = None if args.heatmap_class is None else label_of(args.heatmap_class, facts)
        made.append(HeatMapCopies(request.heatmap, backend.heat_mapper(facts), facts, label))
    return made


def _one_picture(path: Path) -> Iterator[str]:
    if path.is_dir():
        raise InferenceError(f"{path}: it is a folder; name it with --image_dir")
    if not path.exists():
        raise InferenceError(f"{path}: no such file{_current_folder(path)}")
    return iter([str(path)])


def _pictures_below(root: Path, *results: Path) -> Iterator[str]:
    """Stream the pictures of a folder, without those that an earlier run left in the results folders below it."""
    if not root.is_dir():
        raise InferenceError(f"{root}: no such folder{_current_folder(root)}; name one with --image_dir")
    pictures = _outside(results, iter_images(root)) if results else iter_images(root)
    try:
        first = next(pictures, None)
    except OSError as error:
        raise InferenceError(f"{error.filename or root}: cannot read the folder: {error.strerror}") from error
    if first is None:
        raise InferenceError(f"{root}: no pictures in it or below it; endings known: {' '.join(IMAGE_SUFFIXES)}")
    return itertools.chain([first], pictures)


def _outside(folders: Sequence[Path], paths: Iterator[str]) -> Iterator[str]:
    excluded = [folder.resolve() for folder in folders]
    parent, is_outside = "", True
    for path in paths:
        if (name := path.rpartition("/")[0]) != parent:  # paths come folder by folder
            resolved = Path(name).resolve()
            parent, is_outside = name, not any(resolved.is_relative_to(folder) for folder in excluded)
        if is_outside:
            yield path


def _until_unreadable(pictures: Iterator[str], tally: Tally) -> Iterator[str]:
    """End at a folder that cannot be read, so that the pictures before it are still answered."""
    try:
        yield from pictures
    except OSError as error:
        tally.problem, tally.exit_code = f"{error.filename}: cannot read the folder: {error.strerror}", 2


def _weights_and_config(args: argparse.Namespace) -> tuple[Path, Config | None]:
    if args.weights and not args.config:
        return args.weights, None
    if args.model and Path(args.model).is_file():
        raise InferenceError(f"--model {args.model}: it is a file; --model names a module of nets/, --weights a file")
    path = args.config or Path(DEFAULT_CONFIG)
    if args.output is not None and args.output.exists() and path.exists() and args.output.samefile(path):
        raise InferenceError(f"{args.output}: it is the config; choose another file for --output")
    values = {
        "model_net_name": args.net,
        "model_module_name": args.model,
        "num_classes": args.cls,
        "img_height": args.size,
        "img_width": args.size,
    }
    config = process_config(
        path, [f"{key}={value}" for key, value in values.items() if value is not None], check_files=False
    )
    weights = args.weights or config.best_checkpoint()
    if not args.weights and not weights.exists():
        mend = f"train first (python train.py --config {path}), or name a weights file with --weights"
        raise InferenceError(f"{weights}: the net of {path} is not there{_current_folder(weights)}; {mend}")
    return weights, config


def _check_flags(args: argparse.Namespace, weights: Path, facts: Facts) -> None:
    """Raise InferenceError where the flags say something else of the net than its own facts."""
    height, width = facts.preprocess.height, facts.preprocess.width
    flags = {
        f"--net {args.net}": args.net in (None, facts.net["name"]),
        f"--model {args.model}": args.model in (None, facts.net["module"]),
        f"--cls {args.cls}": args.cls in (None, facts.num_classes),
        f"--size {args.size}": args.size is None or args.size == height == width,
    }
    wrong = ", ".join(flag for flag, agrees in flags.items() if not agrees)
    if wrong:
        own = f"{facts.net['module']}.{facts.net['name']} with {facts.num_classes} classes at {height}x{width}"
        raise InferenceError(f"{weights}: it holds {own}, which contradicts {wrong}; leave that out, or name its file")


def _check_config(path: Path, config: Config, weights: Path, facts: Facts) -> None:
    """Tell what a config says otherwise than the file's own facts, which count.

    Raises InferenceError where it has another number of classes: it then is the config of another net.
    """
    from artifacts.facts import preprocess_of

    if config.num_classes != facts.num_classes:
        mend = "name the config that it was trained with, or --weights alone"
        raise InferenceError(
            f"{weights}: it has {facts.num_classes} classes, and {path} has num_classes {config.num_classes}; {mend}"
        )
    said, own = preprocess_of(config), facts.preprocess
    pairs = {
        "model_module_name": (config.model_module_name, facts.net["module"]),
        "model_net_name": (config.model_net_name, facts.net["name"]),
        "model_args": (config.net_args(), {key: facts.net["args"].get(key) for key in config.net_args()}),
        "img_height": (said.height, own.height),
        "img_width": (said.width, own.width),
        "num_channels": (said.channels, own.channels),
        "resize": (said.resize, own.resize),
        "interpolation": (said.interpolation, own.interpolation),
        "mean": (said.mean, own.mean),
        "std": (said.std, own.std),
    }
    if differing := [key for key, (asked, there) in pairs.items() if asked != there]:
        keys = ", ".join(differing)
        print(f"inference.py: {weights} knows its own {keys}; what {path} says of them is not used", file=sys.stderr)


def _check_flags_of_a_checkpoint(args: argparse.Namespace, weights: Path) -> None:
    if not (args.net or args.model or args.cls or args.size):
        return
    from artifacts.checkpoint import is_checkpoint, load_checkpoint

    if is_checkpoint(weights):  # bare weights say nothing that could be contradicted
        _check_flags(args, weights, load_checkpoint(weights).facts)


def _current_folder(path: Path) -> str:
    return "" if path.is_absolute() else f" (current folder {Path.cwd()})"


if __name__ == "__main__":
    raise SystemExit(main())
