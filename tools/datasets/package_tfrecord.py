"""Pack standard annotations with their images: `python -m tools.antgo package/tfrecord --src F.json --tgt DIR`."""

from __future__ import annotations

from tools.datasets.packs import packing_verb

VERB = packing_verb("tfrecord", __doc__ or "")
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
