"""What became of an export: the table in the terminal and export_report.json."""

from __future__ import annotations

import json
import math
import os
import platform
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy.parity import (
    BATCH,
    LEAST_AGREEMENT,
    LEAST_INT8_AGREEMENT,
    MOST_INT8_DIFFERENCE,
    MOST_INT8_LOSS,
    TOLERANCES,
    Measured,
    Reference,
)
from deploy.pictures import Pictures

COLUMNS = 79
FEW_PICTURES = 8
BUSY = 2  # times as long as the fastest round
FLIPS_SHOWN = 20  # of each file, in the report
PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
WRITTEN, REFUSED, UNPROVED, MISSING = "written", "refused", "not proved", "not made"


@dataclass
class Outcome:
    """What became of one format. `runs` holds each runtime that it was proved on; the first decides.

    `status` is written; refused: it does not answer as the net does; not proved: written, and this machine cannot run
    it; not made: a library is missing. `older`: an earlier export had left a file of that name.
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


@dataclass(frozen=True)
class ExportReport:
    """All that an export has to tell."""

    weights: str
    reference: Reference
    outcomes: Sequence[Outcome]
    precision: str
    net_input: str
    calibration: Pictures | None

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
        pictures = self.reference.pictures
        return {
            "weights": self.weights,
            "weights_sha256": self.reference.facts.weights_sha256,
            "net": self.reference.facts.net,
            "precision": self.precision,
            "input": self.net_input,
            "formats": [_outcome_values(outcome) for outcome in self.outcomes],
            "samples": {
                "source": pictures.source,
                "listed": pictures.listed,
                "used": len(pictures),
                "skipped": list(pictures.skipped),
                "labelled": pictures.labels is not None,
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
            },
            "batch_size": BATCH,
            "machine": _machine(),
            "versions": {"python": platform.python_version(), **_versions()},
        }

    def write(self, path: Path) -> None:
        """Write export_report.json, whole or not at all. Raises OSError."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2, allow_nan=False)
            temporary.write_text(f"{text}\n", encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _notes(self) -> Iterator[str]:
        pictures = self.reference.pictures
        of_all = f" of {pictures.listed}" if pictures.listed > len(pictures) + len(pictures.skipped) else ""
        yield (
            "worst, mean: difference of a logit from the net's, as a share of the largest "
            f"({self.reference.scale:.3g}), over {len(pictures)}{of_all} pictures of {pictures.source}"
        )
        eager = [run.eager_ms for outcome in self.outcomes for _, run in outcome.runs if math.isfinite(run.eager_ms)]
        beside = f" ({sorted(eager)[len(eager) // 2]:.0f} ms)" if eager else ""
        yield (
            f"top-1: % of the pictures that keep the net's class. ms: median for a batch of {BATCH}. "
            f"speed: against eager torch fp32 on {self.reference.backend.device}{beside}, timed in turn with it"
        )
        spreads = [run.batch_ms_spread for outcome in self.outcomes for _, run in outcome.runs if run.batch_ms > 0]
        least, most = max(spreads, key=lambda spread: spread[1] / spread[0], default=(1.0, 1.0))
        if most > BUSY * least:
            yield (
                f"warning: the same batch took from {least:.0f} to {most:.0f} ms: this machine does other work, "
                "and the times tell little"
            )
        for outcome in self.outcomes:
            yield from _outcome_notes(outcome)
        if self.calibration is not None:
            yield f"int8 was calibrated on {len(self.calibration)} pictures of {self.calibration.source}"
            if self.calibration is pictures:
                yield "warning: int8 was calibrated and proved on the same pictures, which flatters it"
        if pictures.skipped:
            yield f"{len(pictures.skipped)} pictures could not be read and are left out; first: {pictures.skipped[0]}"
        if len(pictures) > 1 and float(self.reference.logits.std(axis=0).max()) == 0:
            yield "warning: the net gives the same logits for every picture, so that nothing is proved by them"
        if len(pictures) < FEW_PICTURES:
            yield f"warning: {len(pictures)} pictures prove little; name more with --samples"


def _rows(outcome: Outcome) -> Iterator[str]:
    size = f"{outcome.bytes / 1e6:.1f}" if outcome.bytes else ""
    name = outcome.files[0] if outcome.status in (WRITTEN, UNPROVED) else outcome.status
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
                yield f"int8 on {runtime}: top-1 accuracy {change} % of {run.count} pictures"
    if outcome.reason:
        names = " and ".join(outcome.files)
        departs = f"; the first layer that departs: {outcome.departs}" if outcome.departs else ""
        stands = outcome.older and outcome.status in (REFUSED, MISSING)
        older = f"; {names} of an earlier export still there, untouched" if stands else ""
        yield f"{outcome.format} {outcome.status}: {outcome.reason}{departs}{older}"
    for runtime, run in outcome.runs[0 if outcome.status == WRITTEN else 1 :]:
        if run.problem:
            yield f"warning: {outcome.format} on {runtime}: {run.problem}"
        elif outcome.format == "int8" and run.agreement < LEAST_INT8_AGREEMENT:
            yield f"warning: int8 on {runtime}: {len(run.flips)} of {run.count} pictures get another class than before"
        if run.ties:
            yield (
                f"{outcome.format} on {runtime}: {run.ties} pictures change their class where the net's two best "
                "logits are closer than the precision can tell apart, which is not held against it; the first: "
                f"{run.flips[0][0]}"
            )


def _outcome_values(outcome: Outcome) -> dict[str, Any]:
    return {
        "format": outcome.format,
        "files": list(outcome.files),
        "status": outcome.status,
        "reason": outcome.reason,
        "first_departing_layer": outcome.departs,
        "older_file_kept": outcome.older and outcome.status in (REFUSED, MISSING),
        "bytes": outcome.bytes,
        "export_seconds": round(outcome.seconds, 2),
        "runs": [_run_values(runtime, run) for runtime, run in outcome.runs],
    }


def _run_values(runtime: str, run: Measured) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "worst_difference": _finite(run.worst),
        "mean_difference": _finite(run.mean),
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


def _machine() -> dict[str, Any]:
    import torch

    capabilities = torch.cpu.get_capabilities()
    return {
        "cpu": capabilities.get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": sorted(
            name
            for name in ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
            if capabilities.get(name)
        ),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
