"""What became of an export: the table in the terminal and export_report.json."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from common.system_info import machine_info, package_versions
from deploy.export.parity import (
    BATCH,
    LEAST_AGREEMENT,
    LEAST_COSINE,
    LEAST_INT8_AGREEMENT,
    MOST_INT8_DIFFERENCE,
    MOST_INT8_LOSS,
    TOLERANCES,
    Measured,
    Reference,
    is_guessing,
)
from deploy.export.sample_images import SampleImages

COLUMNS = 79
FEW_IMAGES, FEW_FOR_INT8 = 8, 50  # of 50 images one is two points of accuracy
ENOUGH_TO_DOUBT = 50  # labelled images, from which an accuracy like a guesser's tells of wrong labels
BUSY = 2  # times as long as the fastest round
FLIPS_SHOWN = 20  # of each file, in the report
WRITTEN, REFUSED, UNPROVED, MISSING = "written", "refused", "not proved", "not made"


@dataclass
class Outcome:
    """What became of one format. `runs` holds each runtime that it was proved on; the first decides.

    `status` is written; refused: it does not answer as the net does; not proved: written, and this machine cannot run
    it; not made: a library is missing, or the export ended before. `older`: an earlier export had left a file of that
    name.
    """

    format: str
    files: tuple[str, ...]
    status: str = WRITTEN
    reason: str = ""
    departs: str = ""
    bytes: int = 0
    seconds: float = 0.0
    runs: list[tuple[str, Measured]] = field(default_factory=list)
    older: bool = False

    @property
    def is_there(self) -> bool:
        """Say whether this export has written its files."""
        return self.status in (WRITTEN, UNPROVED)


@dataclass(frozen=True)
class ExportReport:
    """All that an export has to tell; `placed` names what lies in the output folder."""

    weights: str
    reference: Reference
    outcomes: Sequence[Outcome]
    precision: str
    net_input: str
    calibration: SampleImages | None
    output_dir: str
    placed: Sequence[str]

    def text(self) -> str:
        """Lay out the table with its notes, no line over 79 columns where no path is longer."""
        head = f"{'format':6} {'file':15} {'runtime':11} {'MB':>6} {'worst':>7} {'mean':>7} {'top-1':>6} {'ms':>6} "
        lines = [head + f"{'speed':>6}", "-" * COLUMNS]
        for outcome in self.outcomes:
            lines += _rows(outcome)
        lines.append("-" * COLUMNS)
        for note in self._notes():
            lines += textwrap.wrap(
                note, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON; what was not measured is null."""
        images = self.reference.images
        return {
            "weights": self.weights,
            "weights_sha256": self.reference.metadata.weights_sha256,
            "net": self.reference.metadata.net,
            "precision": self.precision,
            "input": self.net_input,
            "formats": [_outcome_values(outcome) for outcome in self.outcomes],
            "samples": {
                "source": images.source,
                "listed": images.listed,
                "used": len(images),
                "skipped": list(images.skipped),
                "labelled": images.labels is not None,
                "accuracy": self.reference.accuracy(),
            },
            "calibration": None
            if self.calibration is None
            else {"source": self.calibration.source, "used": len(self.calibration)},
            "tolerances": {
                "worst_difference": TOLERANCES,
                "least_agreement": LEAST_AGREEMENT,
                "most_int8_accuracy_loss": MOST_INT8_LOSS,
                "mean_int8_difference": MOST_INT8_DIFFERENCE,
                "least_cosine_of_features": LEAST_COSINE,
            },
            "batch_size": BATCH,
            "machine": machine_info(),
            "versions": package_versions(),
        }

    def write(self, path: Path) -> None:
        """Write export_report.json, complete or not at all; a path that is not UTF-8 is escaped. Raises OSError."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2, allow_nan=False)
        # What a path has beside UTF-8 are lone surrogates, for which this writes JSON's own escape.
        write_atomic(path, f"{text}\n".encode(errors="backslashreplace"))

    def _notes(self) -> Iterator[str]:
        images = self.reference.images
        of_all = f" of {images.listed}" if images.listed > len(images) + len(images.skipped) else ""
        yield (
            "worst, mean: difference of a logit from the net's, as a share of the largest "
            f"({self.reference.scale:.3g}), over {counted(len(images))}{of_all} of {images.source}"
        )
        eager = [run.eager_ms for outcome in self.outcomes for _, run in outcome.runs if math.isfinite(run.eager_ms)]
        beside = f" ({sorted(eager)[len(eager) // 2]:.0f} ms)" if eager else ""
        kept = "top-1: % of the images that keep the net's class"
        if self.reference.metadata.output == "features":
            kept = "top-1: % of the images whose features point where the net's do"
        yield (
            f"{kept}. ms: median for a batch of {BATCH}. "
            f"speed: against eager torch fp32 on {self.reference.backend.device}{beside}, timed in turn with it"
        )
        spreads = [run.batch_ms_spread for outcome in self.outcomes for _, run in outcome.runs if run.batch_ms > 0]
        least, most = max(spreads, key=lambda spread: spread[1] / spread[0], default=(1.0, 1.0))
        if most > BUSY * least:
            yield (
                f"warning: the same batch took from {least:.0f} to {most:.0f} ms: this machine does other work, "
                "and the times tell little"
            )
        yield from self._accuracy_notes()
        for outcome in self.outcomes:
            yield from _outcome_notes(outcome)
        yield from self._image_notes()
        left_out = [f"{outcome.format} ({outcome.status})" for outcome in self.outcomes if not outcome.is_there]
        beside = f"; left out, for the reason above: {', '.join(left_out)}" if left_out else ""
        yield f"written to {self.output_dir}: {', '.join(self.placed)}{beside}"

    def _accuracy_notes(self) -> Iterator[str]:
        own, count = self.reference.accuracy(), len(self.reference.images)
        if own is None:
            return
        yield f"the net itself gets {100 * own:.2f} % of {counted(count, 'labelled picture')} right"
        classes = self.reference.metadata.num_classes
        if count >= ENOUGH_TO_DOUBT and is_guessing(own, classes, count):
            yield f"warning: guessing among {classes} classes does as well: are these labels the net's own?"

    def _image_notes(self) -> Iterator[str]:
        images, calibration = self.reference.images, self.calibration
        if calibration is not None:
            yield f"int8 was calibrated on {counted(len(calibration))} of {calibration.source}"
            if calibration is images:
                yield "warning: int8 was calibrated and proved on the same images, which flatters it"
        if images.skipped:
            verb = "was" if len(images.skipped) == 1 else "were"
            yield f"{counted(len(images.skipped))} {verb} left out, unreadable; the first: {images.skipped[0]}"
        if len(images) > 1 and float(self.reference.logits.std(axis=0).max()) == 0:
            yield "warning: the net gives the same logits for every image, so that nothing is proved by them"
        if len(images) < FEW_IMAGES:
            yield f"warning: {counted(len(images))} can prove little; name more with --samples"
        if self.net_input != "float32 NCHW" and images.are_grey():
            yield (
                "warning: every image is grey, so that the order of the channels is not proved; name coloured ones "
                "with --samples"
            )


def counted(count: int, noun: str = "picture") -> str:
    """Give a number with its noun: 1 image, 2 images."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _rows(outcome: Outcome) -> Iterator[str]:
    size = f"{outcome.bytes / 1e6:.1f}" if outcome.bytes else ""
    name = outcome.files[0] if outcome.is_there else outcome.status
    if not outcome.runs:
        yield f"{outcome.format:6} {name:15} {UNPROVED if outcome.status == UNPROVED else '':11} {size:>6}".rstrip()
    for position, (runtime, run) in enumerate(outcome.runs):
        first = f"{outcome.format:6} {name:15}" if position == 0 else " " * 22
        figures = (
            f"{_number(run.worst, '.1e'):>7} {_number(run.mean, '.1e'):>7} {_number(100 * run.agreement, '.2f'):>6} "
            f"{_number(run.batch_ms, '.1f'):>6} {_number(run.speed, '.2f') + 'x' if run.batch_ms > 0 else '':>6}"
        )
        yield f"{first} {runtime:11} {size if position == 0 else '':>6} {figures}".rstrip()


def _outcome_notes(outcome: Outcome) -> Iterator[str]:
    if outcome.format == "int8":
        for runtime, run in outcome.runs:
            if run.accuracy is not None:
                change = " -> ".join(f"{100 * share:.2f}" for share in run.accuracy)
                yield f"int8 on {runtime}: top-1 accuracy {change} % of {counted(run.count)}"
        count = max((run.count for _, run in outcome.runs), default=0)
        if FEW_IMAGES <= count < FEW_FOR_INT8:
            yield f"warning: int8 was proved on {counted(count)}, of which each is {100 / count:.1f} points"
    if outcome.reason:
        names = " and ".join(outcome.files)
        departs = f"; the first layer that departs: {outcome.departs}" if outcome.departs else ""
        stands = outcome.older and not outcome.is_there
        older = f"; {names} of an earlier export still there, untouched" if stands else ""
        yield f"{outcome.format} {outcome.status}: {outcome.reason}{departs}{older}"
    for runtime, run in outcome.runs[0 if outcome.status == WRITTEN else 1 :]:
        if run.problem:
            yield f"warning: {outcome.format} on {runtime}: {run.problem}"
        elif outcome.format == "int8" and run.agreement < LEAST_INT8_AGREEMENT:
            yield f"warning: int8 on {runtime}: another answer than before for {len(run.flips)} of {counted(run.count)}"
        elif run.over:
            share = f"{100 * run.over:.1f} % of {counted(run.count)}"
            yield (
                f"{outcome.format} on {runtime}: {share} differ by more than the tolerance, at most by "
                f"{run.allowed:.1e}: ten times what a rounding of its input moves the net by"
            )
        if run.ties:
            yield (
                f"{outcome.format} on {runtime}: another class for {counted(run.ties)} where the net's two best logits "
                "are closer than the precision can tell apart, which is not held against it; the first: "
                f"{run.flips[0][0]}"
            )


def _outcome_values(outcome: Outcome) -> dict[str, Any]:
    return {
        "format": outcome.format,
        "files": list(outcome.files),
        "status": outcome.status,
        "reason": outcome.reason,
        "first_departing_layer": outcome.departs,
        "older_file_kept": outcome.older and not outcome.is_there,
        "bytes": outcome.bytes,
        "export_seconds": round(outcome.seconds, 2),
        "runs": [_run_values(runtime, run) for runtime, run in outcome.runs],
    }


def _run_values(runtime: str, run: Measured) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "worst_difference": _finite(run.worst),
        "mean_difference": _finite(run.mean),
        "share_over_tolerance": run.over,
        "allowed_difference": _finite(run.allowed),
        "top1_agreement": _finite(run.agreement),
        "changed": [{"file": file, "net": net, "got": got} for file, net, got in run.flips[:FLIPS_SHOWN]],
        "changed_count": len(run.flips),
        "ties": run.ties,
        "accuracy": None if run.accuracy is None else {"net": run.accuracy[0], "file": run.accuracy[1]},
        "batch_ms": _finite(run.batch_ms),
        "batch_ms_range": [_finite(value) for value in run.batch_ms_spread],
        "eager_batch_ms": _finite(run.eager_ms),
        "speed": _finite(run.speed),
        "problem": run.problem,
    }


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
