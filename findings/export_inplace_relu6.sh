#!/usr/bin/env bash
# Expected: whether a net's ReLU6 works in place is nothing to torch.export, which makes a graph without mutation of either.
# Happens: with a free batch size, run_decompositions takes two to seven times as long where it does: `hardtanh_` goes through torch's Python
# references down to primitives, hundreds of symbolic comparisons each, and the graph that comes out has the same `hardtanh` as the other
# (torch 2.15.0; torch.onnx.export runs the same decompositions). Hardswish is alike.
# Around it: pytorch2json/tracing.py lets activations return new tensors while a net is exported.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 numpy==2.4.6
cat > "$folder/inplace.py" <<'PY'
import time
import torch
from torch import nn

torch.set_num_threads(1)
print("torch", torch.__version__)


def exported(inplace):
    torch.manual_seed(0)
    blocks = [layer for _ in range(30) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU6(inplace=inplace))]
    net, images = nn.Sequential(*blocks).eval(), torch.rand(4, 8, 16, 16)
    with torch.no_grad():
        program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False)
        start = time.process_time()
        made = program.run_decompositions({})
        seconds = time.process_time() - start
        return seconds, [str(node.target) for node in made.graph.nodes], made.module()(images)


exported(False)  # what is imported late
(plain, nodes, outputs), (inplace, other_nodes, other_outputs) = exported(False), exported(True)
print(f"30 ReLU6: {plain:.2f} s, in place {inplace:.2f} s, {inplace / plain:.1f} times")
assert nodes == other_nodes and torch.equal(outputs, other_outputs), "the graphs differ: it has changed"
if inplace < 1.5 * plain:
    raise SystemExit("in place is no slower any more: it has changed")
print("as described: the same graph, later")
PY
"$folder/venv/bin/python" "$folder/inplace.py"
