"""The formats that a checkpoint is exported to."""

from __future__ import annotations

FORMATS = ("jit", "pt2", "onnx", "int8", "json", "engine", "all")  # in the order in which they are made
PRECISIONS = ("fp32", "fp16", "bf16")
WTS = "model.wts"
MAX_BATCH = 65536
MAX_SAMPLES = 1000  # of which one may change its class
FILES = {  # in the order in which they are made; the first name is the one that is loaded
    "jit": ("model.pt",),
    "pt2": ("model.pt2",),
    "onnx": ("model.onnx",),
    "int8": ("model.int8.onnx",),
    "json": ("model.json", "model.safetensors"),
    "engine": ("model.engine", "model.engine.facts.json"),
}
