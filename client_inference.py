"""Serve a model as the tianji platform asks for it; see docs/tianji.md."""

from platforms.tianji.cli import inference

if __name__ == "__main__":
    raise SystemExit(inference())
