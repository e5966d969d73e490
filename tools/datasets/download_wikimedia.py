"""Fetch images of keywords from Wikimedia Commons: `tools.antgo download/wikimedia --tags keyword:dog --tgt DIR`."""

from __future__ import annotations

from tools.datasets.downloads import download_verb

VERB = download_verb("wikimedia", __doc__ or "")
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
