"""Turn images with VOC XML files into standard annotations: `python -m tools.antgo extract/voc --src DIR --tgt DIR`."""

from __future__ import annotations

from datasets.annotation_folders import VOC
from tools.datasets.folder_verbs import extract_verb

VERB = extract_verb("extract/voc", (__doc__ or "").splitlines()[0], VOC)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
