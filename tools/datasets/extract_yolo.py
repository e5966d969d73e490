"""Turn images with YOLO txt files into standard annotations: `tools.antgo extract/yolo --src DIR --tgt DIR`."""

from __future__ import annotations

from datasets.annotation_folders import YOLO
from tools.datasets.folder_verbs import extract_verb

VERB = extract_verb("extract/yolo", (__doc__ or "").splitlines()[0], YOLO)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
