"""Reports of measurements: a table for the terminal, JSON, and the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import BenchmarkError
from common.paths import ROOT
from tools.benchmark.statistics import BUSY, Figure, Measured, Ratio

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- tables: written by python -m tools.benchmark page -->", "<!-- end of the tables -->"
WHOLE_FROM = 100  # rates from here on are written without decimals


def build_report(command: str, environment: Mapping[str, object], sets: Sequence[Measured]) -> dict[str, Any]:
    """Return the values of the JSON file."""
    return {"command": command, **environment, "sets": [asdict(measured) for measured in sets]}


def read_sets(report: Mapping[str, Any]) -> list[Measured]:
    """Return the measurements of a report that was read from JSON."""
    return [
        Measured(**{**values, "figures": [_figure(item) for item in values["figures"]]}) for values in report["sets"]
    ]


def section(report: Mapping[str, Any]) -> str:
    """Return a report in Markdown: where and how it was measured, and a table for each set."""
    machine = f"{report['hardware']}, {report['cores']} cores, {report['threads']} threads"
    packages = dict(report["versions"])
    for each in report["sets"]:
        packages |= each["versions"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    lines = [f"`{report['command']}`", "", f"{report['day']}, {machine}; {versions}; commit {report['commit']}."]
    return "\n".join([*lines, *(f"\n{table(measured)}" for measured in read_sets(report))])


def table(measured: Measured) -> str:
    """Return a set as a table of Markdown, with a warning where the machine was busy."""
    figures = measured.figures
    extras = list(dict.fromkeys(key for figure in figures for key in figure.extras))
    bases = list(dict.fromkeys(base for figure in figures for base in figure.ratios))
    heads = [measured.title, measured.unit, "lowest", "highest", *(f"ratio to {base}" for base in bases), *extras]
    rows = [[*heads], ["---", *["---:"] * (len(heads) - 1)]]
    for figure in figures:
        ratios = [_ratio_text(figure.ratios.get(base)) for base in bases]
        numbers = [number(value) for value in (figure.median, figure.low, figure.high)]
        more = [number(figure.extras[key]) if key in figure.extras else "" for key in extras]
        rows.append([figure.name, *numbers, *ratios, *more])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    share = f"others took {measured.busy:.0%} of the machine"
    share = f"**busy machine**: {share}" if measured.busy > BUSY else share
    return f"{text}\n\nRounds: {len(figures[0].rounds)}; {share}."


def number(value: float) -> str:
    """Return a figure with three significant digits, from 100 on without decimals."""
    return f"{value:.0f}" if value >= WHOLE_FROM or value == int(value) else f"{value:.3g}"


def write_page(reports: Sequence[Path], page: Path = PAGE) -> None:
    """Write the tables of reports between the marks of the page. Raises BenchmarkError, OSError."""
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise BenchmarkError(f"{page}: the marks around the tables are missing: {BEGIN}")
    try:
        found = [(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in reports]
        sections = [f"## {name}\n\n{section(report)}\n" for name, report in found]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"a file is no report of tools.benchmark: {error}") from error
    page.write_text("\n".join([f"{before}{BEGIN}\n", *sections, f"{END}{after}"]), encoding="utf-8")


def _figure(values: Mapping[str, Any]) -> Figure:
    return Figure(**{**values, "ratios": {base: Ratio(**ratio) for base, ratio in values["ratios"].items()}})


def _ratio_text(ratio: Ratio | None) -> str:
    return "1" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
