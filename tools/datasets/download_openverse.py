"""Fetch images of keywords from Openverse: `tools.antgo download/openverse --tags keyword:dog/cat --tgt DIR`."""

from __future__ import annotations

from tools.datasets.downloads import download_verb

VERB = download_verb("openverse", __doc__ or "")
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
