"""Train as the PIE-Engine platform asks for it; see docs/pie-engine.md."""

from platforms.pie_engine.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
