"""The one entry of antgo's commands: `python -m tools.antgo WORDS`, such as `label/start --src a` or `create mvp`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from common.cli import run_program
from common.errors import UserError
from common.formatting import did_you_mean

VERBS = {  # with what each does; its module is tools.datasets.FIRST_SECOND
    "extract/images": "a folder of images -> standard annotations",
    "extract/videos": "videos -> frames with standard annotations",
    "extract/coco": "a COCO file -> standard annotations",
    "extract/voc": "images with VOC XML -> standard annotations",
    "extract/yolo": "images with YOLO txt -> standard annotations",
    "extract/crop": "the objects of standard annotations -> images of their own",
    "extract/samples": "a few records or lines of a file",
    "browser/images": "a page to look at annotated images, and to tag them by keys",
    "label/start": "a page to label images: classes, boxes, polygons, points",
    "label/studio": "standard annotations <-> Label Studio (--to, --from)",
    "label/merge": "several files of standard annotations -> one",
    "run": "a script with InteractContext: a demo, a page to tag or to label what it records",
    "filter/tags": "records by the tags of a review",
    "doctor/annotations": "what is wrong with standard annotations and their images",
    "package/list": "standard annotations -> lists for a training",
    "package/tfrecord": "standard annotations -> TFRecord shards, which a training reads",
    "package/kv": "standard annotations -> LMDB files",
    "package/coco": "standard annotations -> a COCO file with its images",
    "package/voc": "standard annotations -> images with VOC XML",
    "package/yolo": "standard annotations -> images with YOLO txt",
    "download/openverse": "images by keywords from Openverse, with their licences",
    "download/wikimedia": "images by keywords from Wikimedia Commons, with their licences",
    "download/bing": "images by keywords from Bing's pages, of unknown licences",
    "download/baidu": "images by keywords from Baidu's pages, of unknown licences",
    "download/copy": "a file or folder from any address that fsspec reads",
    "download/aliyun": "the same, by antgo's name",
}
PROJECT_VERBS = {  # most are of two words, such as `create mvp`; with their module in tools.projects
    "create": ("create", "an experiment to start from, a project, an experiment of a project: mvp, project, exp"),
    "add": ("add", "to a project: product, baseline, expert, train/label, train/unlabel, test, val"),
    "del": ("delete", "from a project: the same"),
    "update": ("update", "of a project: submitter, label, semi, distillation, activelearning"),
    "train": ("train", "an experiment, here or as a job: --ssh, --slurm, --local, --kubernetes, --skypilot"),
    "ls": ("ls", "the runs of all projects with their state"),
    "log": ("log", "of a job, followed"),
    "stop": ("stop", "a job, which saves before it ends"),
    "submitter": ("submitter", "where jobs are submitted to: template, update, ls, select, activate"),
    "server": (
        "server",
        "--root R: the loop of projects; --page: a page of them, their runs compared, and decisions",
    ),
    "show": ("show", "projects, their runs, the best: project, exp, best"),
}


class WordsError(UserError):
    """Words that are no command; the message is one sentence for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command by its words, or list the commands; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    words = words[1:] if words[:1] == ["tool"] else words
    if not words or words[0] in ("-h", "--help"):
        return run_program("antgo", _list_verbs)
    if words[0] not in (*VERBS, *PROJECT_VERBS):
        return run_program("antgo", lambda: _refuse(words[0]))
    if words[0] in PROJECT_VERBS:
        name = f"tools.projects.{PROJECT_VERBS[words[0]][0]}"
    else:
        name = f"tools.datasets.{words[0].replace('/', '_')}"
    module = importlib.import_module(name)
    return int(module.VERB.main(words[1:]))


def _list_verbs() -> int:
    print("python -m tools.antgo WORDS; each has --help")
    projects = {name: summary for name, (_, summary) in PROJECT_VERBS.items()}
    for name, summary in (VERBS | projects).items():
        print(f"  {name:<20}{summary}")
    return 0


def _refuse(word: str) -> int:
    if word == "download/vcg":
        raise WordsError("download/vcg: VCG's pictures are paid for; download/openverse has free ones")
    raise WordsError(
        f'"{word}" is no command{did_you_mean(word, (*VERBS, *PROJECT_VERBS))}; without words it lists them'
    )


if __name__ == "__main__":
    raise SystemExit(main())
