"""Fetch a file or a folder, as download/copy does: `tools.antgo download/aliyun --src oss://b/packs --tgt DIR`."""

from __future__ import annotations

from dataclasses import replace

from tools.datasets.download_copy import VERB as COPY

VERB = replace(COPY, name="download/aliyun", description=(__doc__ or "").splitlines()[0])
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
