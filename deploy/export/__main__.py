"""Export a checkpoint to deployment files: `python -m deploy.export --weights W --formats jit,onnx --output_dir D`."""

from deploy.export.exporter import main

if __name__ == "__main__":
    raise SystemExit(main())
