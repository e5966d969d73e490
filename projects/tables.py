"""Projects and runs as tables for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from projects.models import Data, Project, Run

LAST = 10  # decisions
COLUMNS = 120


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows below a head, in columns as wide as they need."""
    lines = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def projects_table(projects: Sequence[Project]) -> str:
    """Return a line for each project."""
    rows = [
        (each.name, len(each.exp), sum(map(len, each.exp.values())), each.product or "-", best_text(each), each.git)
        for each in projects
    ]
    return table(("project", "exps", "runs", "product", "best", "git"), rows)


def project_text(project: Project) -> str:
    """Return what a project is, its data, and its last ten decisions."""
    data = [
        (kind, each.tag, f"{each.num:,}", each.address)
        for kind, rows in (
            ("train/label", project.dataset.train.label),
            ("train/pseudo-label", project.dataset.train.pseudo_label),
            ("train/unlabel", project.dataset.train.unlabel),
            ("test", [project.dataset.test]),
            ("val", [project.dataset.val]),
        )
        for each in rows
        if isinstance(each, Data)
    ]
    tools = {name: getattr(project.tool, name).method for name in ("semi", "distillation", "activelearning")}
    jobs = project.submitter
    values = {
        "git": project.git,
        "product": project.product or "-",
        "baseline": project.baseline or "-",
        "experts": ", ".join(project.expert) or "-",
        "best": best_text(project),
        "label": f"{project.tool.label.type or '-'} {', '.join(project.tool.label.category)}".strip(),
        **{name: method or "-" for name, method in tools.items()},
        "jobs": f"{jobs.method or 'here'}, {jobs.gpu_num} GPU, {jobs.cpu_num} CPU, {jobs.memory} MB",
    }
    parts = [f"{project.name}\n" + "\n".join(f"  {key:<15}{value}" for key, value in values.items())]
    parts += [table(("data", "tag", "samples", "address"), data)] if data else []
    parts += [runs_table(project)] if any(project.exp.values()) else []
    decisions = [decision_text(row) for row in project.decisions[-LAST:]]
    parts += ["\n".join(["decisions", *decisions])] if decisions else []
    return "\n\n".join(parts)


def decision_text(row: Mapping[str, Any]) -> str:
    """Return a decision in lines that fit a wide terminal: when and on what event, what was done, and why."""
    time, event, did, because = (str(row.get(key, "")) for key in ("time", "event", "did", "because"))
    lines = [f"  {time}  {event}: {did}", f"    because {because}"]
    return "\n".join(
        textwrap.fill(line, COLUMNS, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


def runs_table(project: Project) -> str:
    """Return a line for each run of a project, the newest of an experiment last."""
    rows = [
        (run.exp, run.id, run.state or "-", run.stage, score_text(run), run.commit[:12] or "-", roles(project, run))
        for runs in project.exp.values()
        for run in runs
    ]
    empty = [(name, "-", "-", "-", "-", "-", "product" if name == project.product else "")
             for name, runs in project.exp.items() if not runs]  # fmt: skip
    return table(("exp", "id", "state", "stage", "score", "commit", "is"), [*rows, *empty])


def roles(project: Project, run: Run) -> str:
    """Return what a run is for its project: product, baseline, expert, best."""
    best = project.best if isinstance(project.best, Run) else None
    found = {
        "product": run.exp == project.product,
        "baseline": run.name == project.baseline,
        "expert": run.name in project.expert,
        "best": best is not None and best.name == run.name,
    }
    return ", ".join(name for name, holds in found.items() if holds)


def score_text(run: Run) -> str:
    """Return a run's scores, the first of them alone where there are several."""
    score = run.metric.get("score", {})
    return next((f"{name} {value:.4f}" for name, value in score.items() if isinstance(value, int | float)), "-")


def best_text(project: Project) -> str:
    """Return a project's best run with its score, "-" where there is none."""
    best = project.best
    return f"{best.name} ({score_text(best)})" if isinstance(best, Run) else "-"
