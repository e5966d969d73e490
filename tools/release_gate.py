"""May a new net replace the old one? `python -m tools.release_gate --old A --new B --images LIST`.

Both predict for the same labelled images, which neither was trained on nor calibrated with. The new net may replace
the old one if it is better with the confidence asked, worse for no class, and keeps the target risk of its
calibration. Exit code 0: replace; 1: do not, with a sentence for each reason; 2: a mistake in the command.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from artifacts.formats import artifact_kind
from common.atomic_io import check_folder, check_spares, write_atomic, writing
from common.cli import FlagParser, number, run_program
from common.errors import UserError
from deploy.backends.base import RUNTIMES

if TYPE_CHECKING:
    from artifacts.metadata import ModelMetadata
    from configs.schema import Config
    from deploy.backends.base import Backend
    from deploy.uncertainty.outputs import Outputs
    from deploy.uncertainty.release import Release

PROGRAM = "tools.release_gate"
COLUMNS = 79
BETTER, EQUAL = "better", "equal"  # of --gate
REPLACES = {BETTER: "better", EQUAL: "not worse"}


class GateError(UserError):
    """Two nets that cannot be compared; the message is one sentence for the user."""


class LoadedNet(NamedTuple):
    """A net of one of the two files, and its training's config where the file has one."""

    path: Path
    backend: Backend
    metadata: ModelMetadata
    config: Config | None


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the decision and write the report; return the exit code."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Return 0 where the new net may replace the old one, else 1. Raises UserError."""
    if args.report is not None:
        check_folder(args.report.parent)
        check_spares(args.report, args.old, args.new, args.images)
    for path in (args.old, args.new):
        artifact_kind(path)  # a missing file is an error before the libraries are loaded
    from deploy.uncertainty.release import judge_release

    old, new = (_load(path, args) for path in (args.old, args.new))
    _check_classes(old, new)
    old_outputs, root, notes = _outputs(old, args, args.list_root)
    new_outputs, _, more = _outputs(new, args, root)
    pair = old_outputs, old.metadata, new_outputs, new.metadata
    release = judge_release(*pair, args.confidence, takes_equal=args.gate == EQUAL)
    notes = list(dict.fromkeys([*notes, *more]))
    if args.report is not None:
        named = {"old": str(args.old), "new": str(args.new), "list": str(args.images), "confidence": args.confidence}
        _write(args.report, {**named, "notes": notes, **release.to_dict()})
    print("\n".join(_lines(release, notes, args.gate)))
    return 1 if release.reasons else 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of tools.release_gate."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = FlagParser(
        prog=f"python -m {PROGRAM}", description=summary.partition(" `")[0], epilog=rest.strip(), allow_abbrev=False
    )
    add = parser.add_argument
    add("--old", metavar="A", type=Path, required=True, help="the net in use: a checkpoint or an exported file")
    add("--new", metavar="B", type=Path, required=True, help="the net that may replace it, calibrated")
    add("--images", metavar="LIST", type=Path, required=True, help="a labelled list, or one folder per class")
    add("--list_root", metavar="DIR", type=Path, help="folder that the list's paths start from")
    add(
        "--confidence",
        metavar="P",
        type=number(0.5, 0.999999),
        default=0.95,
        help="1 - the probability that an equal net replaces the old one (default 0.95)",
    )
    takes = "what replaces the old net: one that is better (default), or one that is not worse, too"
    add("--gate", choices=(BETTER, EQUAL), default=BETTER, help=takes)
    add("--report", metavar="F", type=Path, help="write the comparison to this JSON file")
    add("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--runtime", choices=RUNTIMES, default="auto", help="what runs ONNX files (default auto)")
    add("--batch_size", metavar="N", type=number(1, 4096), default=32, help="images at once (default 32)")
    add("--workers", metavar="N", type=number(1, 256), default=4, help="threads that decode (default 4)")
    return parser


def _load(path: Path, args: argparse.Namespace) -> LoadedNet:
    """Load one of the nets. Raises GateError for one that is no classifier, UserError."""
    from deploy.backends.loading import load_backend
    from deploy.uncertainty.outputs import config_of

    kind = artifact_kind(path)
    backend, metadata = load_backend(path, device=args.device, runtime=args.runtime if kind == "onnx" else "auto")
    if metadata.output != "logits":
        raise GateError(
            f"{path}: the comparison is of one class for an image, and this net gives {metadata.output}; compare such "
            "nets with inference_uncertain.py --evaluate"
        )
    return LoadedNet(path, backend, metadata, config_of(path) if kind == "checkpoint" else None)


def _check_classes(old: LoadedNet, new: LoadedNet) -> None:
    """Raise GateError where the nets have different classes; their order may differ."""
    from artifacts.class_names import compared

    names = (new.metadata.class_names, old.metadata.class_names)
    if set(names[0]) != set(names[1]):
        raise GateError(f"{new.path}: its classes are not those of {old.path}: {compared(*names, 'the old net')}")


def _outputs(net: LoadedNet, args: argparse.Namespace, root: Path | None) -> tuple[Outputs, Path | None, list[str]]:
    """Run a net on the images; return its outputs, the root of the list's paths, and what should be known of them.

    Raises UncertaintyError for images that it was trained on, SamplesError, ListError.
    """
    from deploy.inference.decision import foreign_calibration
    from deploy.uncertainty.outputs import check_not_trained_on, collect, labelled_samples, trained_on

    found = labelled_samples(args.images, net.config, net.metadata, root, flag="--images")
    trained = trained_on(net.config, net.metadata)
    notes = [found.note] if found.note else []
    if trained is None:
        notes.append(f"the training images of {net.path} are not known here: take care that {args.images} has none")
    else:
        check_not_trained_on(found.samples, args.images, trained)
    if foreign := foreign_calibration(net.metadata, net.backend.name):
        notes.append(f"{net.path}: {foreign}")
    outputs = collect(net.backend, net.metadata, found.samples, batch_size=args.batch_size, workers=args.workers)
    if outputs.skipped:
        notes.append(f"{len(outputs.skipped)} images cannot be read and were left out; the first: {outputs.skipped[0]}")
    return outputs, Path(found.root) if found.root else root, notes


def _write(path: Path, values: dict[str, Any]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
        write_atomic(path, text.encode(errors="backslashreplace"))


def _lines(release: Release, notes: Sequence[str], gate: str) -> list[str]:
    """Return the comparison in lines that fit a terminal, the decision last."""
    whole, target = release.whole, release.target
    lines = [
        f"{whole.images} images: right with the old net {whole.old_right / whole.images:.2%}, with the new one "
        f"{whole.new_right / whole.images:.2%}",
        f"right with the new net alone {whole.gained}, with the old one alone {whole.lost}: p = {whole.p_better:.3g}",
    ]
    lines += [
        f"class {name}: {pairing.gained} gained, {pairing.lost} lost"
        for name, pairing in release.classes.items()
        if pairing.lost > pairing.gained
    ]
    if target:
        lines.append(
            f"the new net accepts {target['coverage']:.1%}, {target['wrong']} of {target['accepted']} wrong (target "
            f"{target['target_risk']:g})"
        )
    verdict = ["keep the old net:", *(f"- {reason}" for reason in release.reasons)]
    lines += [*notes, *(verdict if release.reasons else [f"{REPLACES[gate]}: replace"])]
    return [part for line in lines for part in textwrap.wrap(line, COLUMNS, subsequent_indent="  ")]


if __name__ == "__main__":
    raise SystemExit(main())
