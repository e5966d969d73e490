"""What the loop does next, from a project's file alone: no machine, no disk."""

from __future__ import annotations

from typing import Any

from projects.loop import Task, answering_runs, batch_name, next_tasks
from projects.models import Data, Project, Run, RunData
from projects.rounds import Step

LABEL = Data(tag="spring", num=9, address="packs/P-*")
POOL = Data(tag="pond", num=9, address="packs/U-*")
HELD = {"val": Data(tag="v", num=9, address="packs/V-*"), "test": Data(tag="t", num=9, address="packs/T-*")}


def make_run(number: int, exp: str = "small", state: str = "finish", **values: Any) -> Run:
    checkpoint = f"/runs/{number}/best.pth" if state == "finish" else ""
    train = RunData(train=[LABEL.address])
    return Run(exp=exp, id=str(number), state=state, checkpoint=checkpoint, dataset=train, **values)


def make_project(*runs: Run, held: bool = True, **values: Any) -> Project:
    project = Project(name="birds", auto=True, product="small", exp={"small": [], "large": []}, **values)
    for run in runs:
        project.exp[run.exp].append(run)
    project.dataset.train.label = [LABEL]
    for name, data in HELD.items() if held else ():
        setattr(project.dataset, name, data)
    return project


def decide(project: Project, about: Task, **values: Any) -> None:
    project.decisions.append({"of": about.of, "step": str(about.step or ""), **values})


def steps_of(project: Project, finished: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [(str(task.step or "note"), task.of) for task in next_tasks(project, finished)]


def test_labelled_data_are_trained_on_once() -> None:
    project = make_project()
    (task,) = next_tasks(project, ())
    assert (task.step, task.of, task.stage) == (Step.TRAIN, "supervised small: packs/P-*", "supervised")
    decide(project, task)
    assert not next_tasks(project, ())
    project.dataset.train.label.append(Data(tag="summer", num=9, address="packs/S-*"))
    assert steps_of(project) == [("training", "supervised small: packs/P-*, packs/S-*")]


def test_a_training_of_a_persons_counts_too() -> None:
    project = make_project(make_run(1, state="running"))
    assert not next_tasks(project, ())
    project.dataset.train.label.append(Data(tag="off", num=9, address="packs/O-*", status=False))
    assert not next_tasks(project, ())
    project.product = "large"
    assert steps_of(project) == [("training", "supervised large: packs/P-*")]


def test_a_submission_that_was_interrupted_is_looked_at() -> None:
    project = make_project(make_run(1, state="queued", cause="supervised small: packs/P-*"))
    (task,) = next_tasks(project, ())
    assert task.step == Step.TRAIN and task.run is not None and task.run.id == "1"
    decide(project, task)
    assert not next_tasks(project, ())


def test_what_cannot_go_on_is_said_once() -> None:
    project = make_project(make_run(1, state="stop", cause="supervised small: packs/P-*", finish_time="now"))
    project.decisions.append({"of": "supervised small: packs/P-*", "step": "training"})
    (task,) = next_tasks(project, ())
    assert task.step is None and "train --exp small --resume --id 1 goes on with it" in task.because
    decide(project, task)
    assert not next_tasks(project, ())
    project.product = ""
    assert [task.because for task in next_tasks(project, ())] == ["there is no product: add product --exp E"]
    project = make_project(make_run(1), held=False)
    assert [task.because[:38] for task in next_tasks(project, ())] == ["there is nothing to calibrate it on: a"]


def test_a_candidate_passes_the_gate_and_is_the_best() -> None:
    project, values = make_project(make_run(1)), {"net": "n", "calibrated": True, "val": "packs/V-*"}
    for step, found in (("calibration", values), ("gate", {"replace": True}), ("release", {})):
        (task,) = next_tasks(project, ())
        assert (task.step, task.of) == (step, "small.1")
        decide(project, task, **found)
    assert not next_tasks(project, ())


def test_a_candidate_that_does_not_pass_is_done() -> None:
    project = make_project(make_run(1))
    project.decisions = [{"of": "small.1", "step": "calibration", "net": "n"}]
    project.dataset.test = {}
    (task,) = next_tasks(project, ())
    assert task.step is None and task.because.startswith("there is nothing to judge it on")
    project.dataset.test = HELD["test"]
    (task,) = next_tasks(project, ())
    assert task.step == Step.COMPARE
    decide(project, task, replace=False)
    assert not next_tasks(project, ())


def test_an_expert_is_exported_and_teaches() -> None:
    project = make_project(make_run(1), make_run(2, "large"), expert=["large.2"])
    project.tool.distillation.method = "logits"
    assert steps_of(project) == [
        ("training", "distillation small.1: large.2"),
        ("calibration", "small.1"),
        ("calibration", "large.2"),
    ]
    project.tool.distillation.method = ""
    assert ("training", "distillation small.1: large.2") not in steps_of(project)


def of_nets(*names: str) -> list[dict[str, Any]]:
    return [{"of": name, "step": "calibration", "net": "n", "calibrated": True, "val": "packs/V-*"} for name in names]


def test_who_answers() -> None:
    project = make_project(make_run(1), make_run(2), make_run(3, "large"), make_run(4, "large"))
    project.expert = ["large.4", "large.3"]
    assert answering_runs(project) == (None, [])
    project.decisions = of_nets("small.1", "small.2")
    answering, voters = answering_runs(project)
    assert (answering and answering.name, [run.name for run in voters]) == ("small.2", ["small.2"])
    project.best = project.exp["small"][0]
    assert answering_runs(project)[0] == project.best
    project.decisions += of_nets("large.3", "large.4")
    answering, voters = answering_runs(project)
    assert answering and answering.name == "large.4"
    assert [run.name for run in voters] == ["small.1", "large.3", "large.4"]
    project.decisions[-1]["calibrated"] = False
    answering, _ = answering_runs(project)
    assert answering and answering.name == "large.3"


def test_a_batch_waits_for_a_net_and_for_a_person() -> None:
    project = make_project(make_run(1, state="running"))
    project.dataset.train.unlabel = [POOL]
    (task,) = next_tasks(project, ())
    assert (task.step, task.of) == (Step.TAKE_IN, batch_name(POOL))
    decide(project, task)
    assert not next_tasks(project, ())  # its training runs
    project.exp["small"] = [make_run(1)]
    project.decisions += [*of_nets("small.1"), {"of": "small.1", "step": "gate", "replace": False}]
    for step, values in ((Step.PREDICT, {}), (Step.PICK, {"task": "small.7"})):
        (task,) = next_tasks(project, ())
        assert task.step == step
        decide(project, task, **values)
    assert not next_tasks(project, ())
    (task,) = next_tasks(project, ("small.7",))
    assert (task.step, task.event) == (Step.LABEL, "a label task's FINISH")
    decide(project, task, labelled=3, pseudo_labels=0)
    assert not next_tasks(project, ("small.7",))


def test_without_any_labels_a_batch_begins_without_a_net() -> None:
    project = make_project()
    project.dataset.train.label, project.dataset.train.unlabel = [], [POOL]
    project.decisions = [{"of": batch_name(POOL), "step": "incoming"}]
    assert steps_of(project) == [("predictions", batch_name(POOL))]


def test_unlabelled_data_are_learnt_from_once() -> None:
    project = make_project(make_run(1, state="running"))
    project.dataset.train.unlabel = [POOL]
    project.tool.semi.method = "mpl"
    project.decisions = [{"of": batch_name(POOL), "step": step, "task": "t"} for step in ("incoming", "picks")]
    assert not [task for task in next_tasks(project, ()) if task.step == Step.TRAIN]
    project.decisions.append({"of": batch_name(POOL), "step": "predictions"})
    (task,) = next_tasks(project, ())
    assert (task.of, task.stage) == ("semi small: packs/U-*", "semi")


def test_a_refuted_calibration_is_asked_for_anew_on_other_data() -> None:
    project = make_project(make_run(1))
    project.decisions = [*of_nets("small.1"), {"of": "small.1", "step": "gate", "replace": False}]
    project.decisions.append({"of": "unlabel a: b", "step": "labels", "refuted": "packs/V-*"})
    assert not next_tasks(project, ())
    project.dataset.val = Data(tag="new", num=9, address="packs/W-*")
    assert steps_of(project) == [("calibration", "small.1")]
