#!/usr/bin/env bash
# Expected: on a CPU that multiplies bf16 natively, a depthwise convolution trains in bf16 at least as fast as in float32.
# Happens: the forward pass does, but the gradients in bf16 take 4 to 10 times as long as in float32 with channels_last: those of the weights
# with kernels of 5x5, and those of the image with a stride of 2 (torch 2.15.0, oneDNN inside, AMX). A whole EfficientNet-Lite0 trains
# slower in bf16 than in float32.
# Around it: trainers/runtime/depthwise.py computes these gradients in float32.
set -euo pipefail
grep -qE 'amx_bf16|avx512_bf16' /proc/cpuinfo || { echo "this CPU does not multiply bf16: nothing to see"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 numpy==2.4.6
cat > "$folder/depthwise.py" <<'PY'
import statistics, time
import torch

torch.set_num_threads(2)
print("torch", torch.__version__)


def milliseconds(dtype, channels, side, kernel, stride, of_weight):
    image = torch.randn(16, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(channels, 1, kernel, kernel, dtype=dtype, requires_grad=True)
    output = torch.nn.functional.conv2d(image, weight, stride=stride, padding=kernel // 2, groups=channels)
    gradient = torch.ones_like(output)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        torch.autograd.grad(output, weight if of_weight else image, gradient, retain_graph=True)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


for name, case in {
    "weights, 240 channels, 28 px, 5x5": (240, 28, 5, 1, True),
    "image, 144 channels, 56 px, 5x5, stride 2": (144, 56, 5, 2, False),
}.items():
    fp32, bf16 = (milliseconds(dtype, *case) for dtype in (torch.float32, torch.bfloat16))
    print(f"{name}: float32 {fp32:.1f} ms, bf16 {bf16:.1f} ms, {bf16 / fp32:.1f} times")
    if bf16 < 1.5 * fp32:
        raise SystemExit("bf16 is no slower any more: it has changed")
print("as described: bf16 is slower")
PY
"$folder/venv/bin/python" "$folder/depthwise.py"
