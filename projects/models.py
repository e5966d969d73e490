"""What a project's file holds: its keys, their types and defaults. Unknown keys are kept."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

LABEL_TYPES = ("CLASS", "RECT", "POINT", "POLYGON", "SKELETON")
QUEUED, FINISHED, RUNNING, STOPPED, LOST = "queued", "finish", "running", "stop", "lost"


class Part(BaseModel):
    """A part of a project's file."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, populate_by_name=True)


class Data(Part):
    """Data by a tag: `num` samples at an address, a pack without its ending, or a pattern."""

    tag: str
    num: int = Field(ge=0)
    status: bool = True
    address: str


class TrainData(Part):
    """What there is to train on."""

    label: list[Data] = []
    pseudo_label: list[Data] = Field(default=[], alias="pseudo-label")
    unlabel: list[Data] = []


class Datasets(Part):
    """The data of a project; `test` and `val` are {} where there are none."""

    train: TrainData = TrainData()
    test: Data | dict[str, Any] = {}
    val: Data | dict[str, Any] = {}


class Submitter(Part):
    """How jobs are submitted, and what they ask for; `memory` in MB."""

    method: str = ""
    gpu_num: int = Field(default=0, ge=0)
    cpu_num: int = Field(default=0, ge=0)
    memory: int = Field(default=0, ge=0)


class Label(Part):
    """What people label."""

    type: Literal["", "CLASS", "RECT", "POINT", "POLYGON", "SKELETON"] = ""
    category: list[str] = []
    meta: dict[str, Any] = {"skeleton": []}


class Method(Part):
    """A method by name, "" for none, with its settings."""

    method: str = ""
    config: dict[str, Any] = {}


class Tools(Part):
    """What the loop works with."""

    label: Label = Label()
    semi: Method = Method()
    distillation: Method = Method()
    activelearning: Method = Method()
    ensemble: Method = Method()


class RunData(Part):
    """The data of a run, by address."""

    test: str = ""
    train: list[str] = []


class Run(Part):
    """One run of an experiment. Times are as 2026-11-29x08-15-00, "" for what has not been; `root` is its folder.

    `cause` is what the loop has begun it for, "" for a run of a person's.
    """

    exp: str
    id: str
    branch: str = ""
    commit: str = ""
    metric: dict[str, Any] = {}
    dataset: RunData = RunData()
    checkpoint: str = ""
    create_time: str = ""
    finish_time: str = ""
    state: str = ""
    stage: str = "supervised"
    root: str = ""
    cause: str = ""

    @property
    def name(self) -> str:
        """Return the name by which product, baseline and experts are kept."""
        return f"{self.exp}.{self.id}"


class Project(Part):
    """A project. `product` is an experiment, `baseline` and `expert` are runs by name, `best` is a run or {}."""

    name: str
    git: str = ""
    image: str = ""
    type: str = ""
    auto: bool = False
    product: str = ""
    baseline: str = ""
    expert: list[str] = []
    submitter: Submitter = Submitter()
    tool: Tools = Tools()
    dataset: Datasets = Datasets()
    exp: dict[str, list[Run]] = {}
    best: Run | dict[str, Any] = {}
    decisions: list[dict[str, Any]] = []

    def values(self) -> dict[str, Any]:
        """Return plain values by the file's keys."""
        return self.model_dump(by_alias=True)
