"""Fetch images of keywords that Baidu finds: `tools.antgo download/baidu --tags keyword:dog --tgt DIR`."""

from __future__ import annotations

from tools.datasets.downloads import download_verb

VERB = download_verb("baidu", __doc__ or "")
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
