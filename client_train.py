"""Train a model as the tianji platform asks for it; see docs/tianji.md."""

from platforms.tianji.cli import train

if __name__ == "__main__":
    raise SystemExit(train())
