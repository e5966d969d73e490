"""Write standard annotations as images with VOC XML files: `tools.antgo package/voc --src F.json --tgt DIR`."""

from __future__ import annotations

from datasets.annotation_folders import VOC
from tools.datasets.folder_verbs import package_verb

VERB = package_verb("package/voc", (__doc__ or "").splitlines()[0], VOC)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
