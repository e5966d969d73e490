"""Write standard annotations as images with YOLO txt files: `tools.antgo package/yolo --src F.json --tgt DIR`."""

from __future__ import annotations

from datasets.annotation_folders import YOLO
from tools.datasets.folder_verbs import package_verb

VERB = package_verb("package/yolo", (__doc__ or "").splitlines()[0], YOLO)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
