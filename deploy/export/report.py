"""The outcomes of an export: the table in the terminal and export_report.json."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from common.formatting import counted
from common.system_info import machine_info, package_versions
from deploy.export.formats import UNVERIFIED, WRITTEN, ExportFormat
from deploy.export.parity import LEAST_COSINE, rule_of
from deploy.export.parity_rule import (
    LEAST_AGREEMENT,
    LEAST_INT8_AGREEMENT,
    MOST_INT8_DIFFERENCE,
    MOST_INT8_LOSS,
    ParityResult,
    ParityRule,
    is_chance,
)
from deploy.export.reference import BATCH, TOLERANCES, Reference, flat
from deploy.export.request import ExportRequest
from deploy.export.sample_images import SampleImages
from deploy.export.timing import BestPrecision

COLUMNS = 79
FEW_IMAGES, FEW_FOR_INT8 = 8, 50  # of 50 images one is two points of accuracy
ENOUGH_FOR_CHANCE = 50  # labelled images, from which an accuracy no better than chance points to wrong labels
BUSY = 2  # times as long as the fastest round
FLIPS_SHOWN = 20  # of each file, in the report


@dataclass
class Outcome:
    """The outcome of one format. `runs` has the result on each runtime; the first decides.

    `status` is WRITTEN; REFUSED: it differs from the net; UNVERIFIED: written, and this machine cannot run it; MISSING:
    a library is missing, or the export ended before. `older`: an earlier export had left a file of that name.
    """

    format: ExportFormat
    status: str = WRITTEN
    reason: str = ""
    diverging_layer: str = ""
    bytes: int = 0
    seconds: float = 0.0
    runs: list[tuple[str, ParityResult]] = field(default_factory=list)
    older: bool = False

    @property
    def is_there(self) -> bool:
        """Whether this export has written its files."""
        return self.status in (WRITTEN, UNVERIFIED)

    @property
    def is_older_kept(self) -> bool:
        """Whether a file of an earlier export is still in its place."""
        return self.older and not self.is_there

    @property
    def status_text(self) -> str:
        """The status for a terminal."""
        return "not verified" if self.status == UNVERIFIED else self.status


@dataclass(frozen=True)
class ExportReport:
    """The results of an export; `published` names its files in the output folder."""

    request: ExportRequest
    reference: Reference
    outcomes: Sequence[Outcome]
    calibration: SampleImages | None
    published: Sequence[str]
    best: BestPrecision = field(default_factory=BestPrecision)

    def text(self) -> str:
        """Return the table with its notes, no line over 79 columns where no path is longer."""
        kept = rule_of(self.reference.metadata).column
        head = f"{'format':6} {'file':15} {'runtime':11} {'MB':>6} {'worst':>7} {'mean':>7} {kept:>6} {'ms':>6} "
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
        """Return plain values for JSON; what was not measured is null."""
        images = self.reference.images
        return {
            "weights": str(self.request.weights),
            "weights_sha256": self.reference.metadata.weights_sha256,
            "net": self.reference.metadata.net,
            "precision": self.request.precision,
            "input": self.request.net_input,
            "int8_symmetric": self.request.int8_symmetric,
            "formats": [_outcome_values(outcome) for outcome in self.outcomes],
            "samples": {
                "source": images.source,
                "root": images.root,
                "listed": images.listed,
                "used": len(images),
                "skipped": list(images.skipped),
                "labelled": images.labels is not None,
                "accuracy": rule_of(self.reference.metadata).accuracy(self.reference),
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
            "checkpoint": {"best_precision": self.best.name, "speed": self.best.speed},
            "machine": machine_info(),
            "versions": package_versions(),
        }

    def write(self, path: Path) -> None:
        """Write export_report.json, complete or not at all; a path that is not UTF-8 is escaped. Raises OSError."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2, allow_nan=False)
        # What a path has beside UTF-8 are lone surrogates, for which this writes JSON's own escape.
        write_atomic(path, f"{text}\n".encode(errors="backslashreplace"))

    def _notes(self) -> Iterator[str]:
        images, rule = self.reference.images, rule_of(self.reference.metadata)
        of_all = f" of {images.listed}" if images.listed > len(images) + len(images.skipped) else ""
        yield (
            f"worst, mean: difference of a {rule.value} from the net's, as a share of the largest "
            f"({self.reference.scale:.3g}), over {counted(len(images))}{of_all} of {images.place}"
        )
        eager = [run.eager_ms for outcome in self.outcomes for _, run in outcome.runs if math.isfinite(run.eager_ms)]
        beside = f" ({sorted(eager)[len(eager) // 2]:.0f} ms)" if eager else ""
        kept = f"{rule.agreement_note}. " if rule.agreement_note else ""
        yield (
            f"{kept}ms: median for a batch of {BATCH}. "
            f"speed: against eager torch fp32 on {self.reference.backend.device}{beside}, timed in turn with it"
        )
        spreads = [run.batch_ms_spread for outcome in self.outcomes for _, run in outcome.runs if run.batch_ms > 0]
        least, most = max(spreads, key=lambda spread: spread[1] / spread[0], default=(1.0, 1.0))
        if most > BUSY * least:
            yield (
                f"warning: the same batch took from {least:.0f} to {most:.0f} ms: this machine does other work, "
                "and the times vary with it"
            )
        yield from self._slower_note()
        yield from self._accuracy_notes()
        yield from self._box_note()
        for outcome in self.outcomes:
            yield from _outcome_notes(outcome, rule)
            yield from self._calibration_note(outcome)
        yield from self._size_note()
        yield from self._image_notes()
        left_out = [
            f"{outcome.format.name} ({outcome.status_text})" for outcome in self.outcomes if not outcome.is_there
        ]
        beside = f"; left out, for the reason above: {', '.join(left_out)}" if left_out else ""
        yield f"written to {self.request.output_dir}: {', '.join(self.published)}{beside}"

    def _slower_note(self) -> Iterator[str]:
        best = f"the checkpoint in {self.best.name}" + (f" ({self.best.speed:.2f}x)" if self.best.speed > 1 else "")
        runs = [(outcome.format.name, *run) for outcome in self.outcomes for run in outcome.runs]
        slower = [
            f"{name} on {runtime} ({run.speed:.2f}x)" if runtime != name else f"{name} ({run.speed:.2f}x)"
            for name, runtime, run in runs
            if run.batch_ms > 0 and self.best.is_faster_than(run.speed)
        ]
        if slower:
            yield f"slower than {best}: {', '.join(slower)}"

    def _box_note(self) -> Iterator[str]:
        runs = [(outcome.format.name, *run) for outcome in self.outcomes for run in outcome.runs]
        matches = [(f"{name} on {runtime}", run.box_match) for name, runtime, run in runs if run.box_match]
        if matches:
            count = counted(matches[0][1].number, "candidate")
            texts = [f"{name} {match.least_iou:.6f} and {match.most_change:.1e}" for name, match in matches]
            yield (
                f"{count}, boxes of a score over 0.05: least IoU with the net's, and largest change of a score: "
                f"{'; '.join(texts)}"
            )

    def _size_note(self) -> Iterator[str]:
        sizes = {outcome.format.name: outcome.runs[0][1].other_size for outcome in self.outcomes if outcome.runs}
        if found := {name: size for name, size in sizes.items() if size}:
            preprocess, (height, width) = self.reference.metadata.preprocess, next(iter(found.values()))
            step, own = height - preprocess.height, f"{preprocess.width}x{preprocess.height}"
            which = f"any width and height that are multiples of {step}"
            yield f"{', '.join(found)}: {which}, verified at {own} and {width}x{height}"

    def _calibration_note(self, outcome: Outcome) -> Iterator[str]:
        fitted_to = self.reference.metadata.calibrated_outputs
        precision = outcome.format.precision or self.request.precision
        if not outcome.is_there or fitted_to in ("", precision):
            return
        file = self.request.output_dir / outcome.format.files[0]
        own = f"; its own: python inference_uncertain.py --weights {file} --calibrate LIST"
        yield (
            f"{outcome.format.name} ({precision}) carries thresholds that were fitted to the outputs of "
            f"{fitted_to}, and the target risk is that of those{own if file.suffix == '.onnx' else ''}"
        )

    def _accuracy_notes(self) -> Iterator[str]:
        rule, count = rule_of(self.reference.metadata), len(self.reference.images)
        if (own := rule.accuracy(self.reference)) is None:
            return
        if rule.measure != "top-1 accuracy":
            yield f"the net's own {rule.measure} is {100 * own:.2f} %, on {counted(count, 'labelled image')}"
            return
        yield f"the net itself gets {100 * own:.2f} % of {counted(count, 'labelled image')} right"
        classes = self.reference.metadata.num_classes
        if count >= ENOUGH_FOR_CHANCE and is_chance(own, classes, count):
            yield f"warning: that is no better than chance among {classes} classes: are these labels the net's own?"

    def _image_notes(self) -> Iterator[str]:
        images, calibration = self.reference.images, self.calibration
        yield from filter(None, dict.fromkeys((images.note, calibration.note if calibration else "")))
        if calibration is not None:
            yield f"int8 was calibrated on {counted(len(calibration))} of {calibration.place}"
            if calibration is images:
                yield "warning: int8 was calibrated and verified on the same images, which flatters it"
        if images.skipped:
            verb = "was" if len(images.skipped) == 1 else "were"
            yield f"{counted(len(images.skipped))} {verb} left out, unreadable; the first: {images.skipped[0]}"
        if len(images) > 1 and float(flat(self.reference.outputs).std(axis=0).max()) == 0:
            same = f"the net has the same {self.reference.metadata.output} for every image"
            yield f"warning: {same}, so that they verify nothing"
        if len(images) < FEW_IMAGES:
            yield f"warning: {counted(len(images))} can verify little; name more with --samples of deploy.export"
        if self.request.net_input != "float32 NCHW" and images.are_grey():
            yield (
                "warning: every image is grey, so that the order of the channels is not verified; name coloured ones "
                "with --samples"
            )


def _rows(outcome: Outcome) -> Iterator[str]:
    size = f"{outcome.bytes / 1e6:.1f}" if outcome.bytes else ""
    name = outcome.format.files[0] if outcome.is_there else outcome.status
    if not outcome.runs:
        status = outcome.status_text if outcome.status == UNVERIFIED else ""
        yield f"{outcome.format.name:6} {name:15} {status}{size:>{18 - len(status)}}".rstrip()
    for position, (runtime, run) in enumerate(outcome.runs):
        first = f"{outcome.format.name:6} {name:15}" if position == 0 else " " * 22
        figures = (
            f"{_number(run.worst, '.1e'):>7} {_number(run.mean, '.1e'):>7} {_number(100 * run.agreement, '.2f'):>6} "
            f"{_number(run.batch_ms, '.1f'):>6} {_number(run.speed, '.2f') + 'x' if run.batch_ms > 0 else '':>6}"
        )
        yield f"{first} {runtime:11} {size if position == 0 else '':>6} {figures}".rstrip()


def _outcome_notes(outcome: Outcome, rule: ParityRule) -> Iterator[str]:
    name = outcome.format.name
    if outcome.format.is_quantized:
        for runtime, run in outcome.runs:
            if run.accuracy is not None:
                change = " -> ".join(f"{100 * share:.2f}" for share in run.accuracy)
                low, high = (100 * share for share in run.loss_interval or (math.nan, math.nan))
                loss = f": {low:.1f} to {high:.1f} points lost (90 % interval)"
                over = "; warning: over half a point" if run.accuracy[0] - run.accuracy[1] > MOST_INT8_LOSS else ""
                yield f"{name} on {runtime}: {rule.measure} {change} % of {counted(run.count)}{loss}{over}"
        count = max((run.count for _, run in outcome.runs), default=0)
        if FEW_IMAGES <= count < FEW_FOR_INT8 and rule.column == "top-1":
            yield f"warning: {name} was verified on {counted(count)}, of which each is {100 / count:.1f} points"
    if outcome.reason:
        files = " and ".join(outcome.format.files)
        layer = f"; the first diverging layer: {outcome.diverging_layer}" if outcome.diverging_layer else ""
        older = f"; {files} of an earlier export still there, untouched" if outcome.is_older_kept else ""
        yield f"{name} {outcome.status_text}: {outcome.reason}{layer}{older}"
    for runtime, run in outcome.runs[0 if outcome.status == WRITTEN else 1 :]:
        if run.problem:
            yield f"warning: {name} on {runtime}: {run.problem}"
        elif outcome.format.is_quantized and run.agreement < LEAST_INT8_AGREEMENT:
            yield f"warning: {name} on {runtime}: {rule.changed(run)}"
        elif run.over:
            share = f"{100 * run.over:.1f} % of {counted(run.count)}"
            yield (
                f"{name} on {runtime}: {share} differ by more than the tolerance, at most by "
                f"{run.allowed:.1e}: ten times what a rounding of its input moves the net by"
            )
        if run.ties:
            yield (
                f"{name} on {runtime}: another class for {counted(run.ties)} where the net's two best logits are "
                "closer than the precision can distinguish, or than the net itself holds still; the first: "
                f"{run.flips[0][0]}"
            )


def _outcome_values(outcome: Outcome) -> dict[str, Any]:
    return {
        "format": outcome.format.name,
        "files": list(outcome.format.files),
        "status": outcome.status,
        "reason": outcome.reason,
        "first_departing_layer": outcome.diverging_layer,
        "older_file_kept": outcome.is_older_kept,
        "bytes": outcome.bytes,
        "export_seconds": round(outcome.seconds, 2),
        "runs": [_run_values(runtime, run) for runtime, run in outcome.runs],
    }


def _run_values(runtime: str, run: ParityResult) -> dict[str, Any]:
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
        "accuracy_lost_interval": None if run.loss_interval is None else list(run.loss_interval),
        "boxes": None if run.box_match is None else run.box_match._asdict(),
        "other_size": None if run.other_size is None else list(run.other_size),
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
