"""Fetch images of keywords that Bing finds: `tools.antgo download/bing --tags keyword:dog --tgt DIR`."""

from __future__ import annotations

from tools.datasets.downloads import download_verb

VERB = download_verb("bing", __doc__ or "")
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
