"""Measure a model on `test` as the tianji platform asks for it; see docs/tianji.md."""

from platforms.tianji.cli import test

if __name__ == "__main__":
    raise SystemExit(test())
