"""Write MNIST as images and lists: `python -m tools.make_mnist`."""

from tools.datasets.make_mnist import main

if __name__ == "__main__":
    raise SystemExit(main())
