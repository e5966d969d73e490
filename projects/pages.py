"""The pages of projects as HTML: all of them, and one with its runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from projects.book import Book
from projects.comparison import MOST, Chart, ReportedRun, charts, differences, read_report, style_of
from projects.errors import ProjectError
from projects.models import FINISHED, RUNNING, Project, Run
from projects.runs import present_state
from projects.tables import best_text, roles
from visualization.html_page import render_page

PAGE = Path(__file__).with_name("page")
SHOWN_DECISIONS = 50


def projects_html(book: Book) -> str:
    """Return the page of all projects; one whose file is damaged says so."""
    return render_page(PAGE / "projects.html.jinja", {}, home=str(book.home), projects=list(map(_row, _read(book))))


def project_html(project: Project, wanted: Sequence[str]) -> str:
    """Return a project's page with the runs compared that are wanted by name, else the newest finished ones."""
    runs = [run for runs in project.exp.values() for run in runs]
    names = set(wanted) & {run.name for run in runs} or {run.name for run in runs if run.state == FINISHED}
    chosen = [read_report(run) for run in runs if run.name in names][-MOST:]
    shown = {each.run.name for each in chosen}
    scores = list(dict.fromkeys(name for run in runs for name in _numbers(run)))
    highest = {name: max(_numbers(run)[name] for run in runs if name in _numbers(run)) for name in scores}
    return render_page(
        PAGE / "project.html.jinja",
        {},
        project=project,
        cards=_cards(project),
        most=MOST,
        scores=scores,
        runs=[_run_row(project, run, highest, run.name in shown) for run in runs],
        chosen=[(each.run.name, style_of(number), bool(each.config)) for number, each in enumerate(chosen)],
        charts=[Chart(chart.title, Markup(chart.svg)) for chart in charts(chosen)],
        differences=differences([each for each in chosen if each.config]) if _all_reported(chosen) else [],
        decisions=project.decisions[: -SHOWN_DECISIONS - 1 : -1],
    )


def _all_reported(chosen: Sequence[ReportedRun]) -> bool:
    return len(chosen) > 1 and all(each.config for each in chosen)


def _read(book: Book) -> list[tuple[str, Project | ProjectError]]:
    found: list[tuple[str, Project | ProjectError]] = []
    for name in book.names():
        try:
            found.append((name, book.read(name)))
        except ProjectError as error:
            found.append((name, error))
    return found


def _row(found: tuple[str, Project | ProjectError]) -> dict[str, Any]:
    name, project = found
    if isinstance(project, ProjectError):
        return {"name": name, "problem": str(project)}
    runs = [run for runs in project.exp.values() for run in runs]
    return {
        "name": name,
        "problem": "",
        "experiments": len(project.exp),
        "runs": len(runs),
        "running": sum(present_state(run) == RUNNING for run in runs),
        "product": project.product or "–",
        "best": best_text(project),
        "git": project.git,
    }


def _cards(project: Project) -> list[tuple[str, str]]:
    data = project.dataset.train
    return [
        ("product", project.product or "–"),
        ("best", best_text(project)),
        ("baseline", project.baseline or "–"),
        ("experts", ", ".join(project.expert) or "–"),
        ("labelled", f"{sum(each.num for each in data.label):,}"),
        ("without labels", f"{sum(each.num for each in data.unlabel):,}"),
    ]


def _run_row(project: Project, run: Run, highest: dict[str, float], is_chosen: bool) -> dict[str, Any]:
    numbers = _numbers(run)
    return {
        "name": run.name,
        "is_chosen": is_chosen,
        "state": present_state(run) or "–",
        "stage": run.stage,
        "scores": [
            (f"{numbers[name]:.4f}", numbers[name] == high) if name in numbers else ("–", False)
            for name, high in highest.items()
        ],
        "commit": run.commit[:12] + ("+" if run.commit.endswith("+") and len(run.commit) > 13 else ""),
        "finished": run.finish_time or "–",
        "roles": [role for role in roles(project, run).split(", ") if role],
    }


def _numbers(run: Run) -> dict[str, float]:
    score = run.metric.get("score", {})
    score = score if isinstance(score, dict) else {}
    return {name: value for name, value in score.items() if isinstance(value, int | float)}
