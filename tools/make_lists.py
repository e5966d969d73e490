"""Write txt lists of a folder's images: `python -m tools.make_lists`."""

from tools.datasets.make_lists import main

if __name__ == "__main__":
    raise SystemExit(main())
