"""Write scikit-learn's digits as images and lists: `python -m tools.make_digits`."""

from tools.datasets.make_digits import main

if __name__ == "__main__":
    raise SystemExit(main())
