"""The first diverging layer of a refused file: where it stops computing what the net computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

Key = tuple[str, int]  # a module's dotted name, and the number of its call
LEAST_FALL_DB = 6.0  # of the signal to noise ratio, for a layer of an int8 file to be named: one bit
NONE_COMPARABLE = "no layer of it can be compared"


@dataclass(frozen=True)
class Call:
    """One call of one module: its inputs, where all are tensors, and its output."""

    key: Key
    inputs: tuple[torch.Tensor, ...] | None
    output: np.ndarray


def record_calls(net: nn.Module, images: torch.Tensor) -> list[Call]:
    """Run the net and return the inputs and output of each module's calls, in the order in which they ended."""
    calls: list[Call] = []
    counts: Counter[str] = Counter()
    waiting: dict[str, tuple[torch.Tensor, ...] | None] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            plain = not kwargs and all(isinstance(arg, torch.Tensor) for arg in args)
            waiting[name] = tuple(arg.clone() for arg in args) if plain else None  # copies: ReLU works in place

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, torch.Tensor):
                calls.append(Call((name, counts[name]), waiting[name], as_array(output)))
            counts[name] += 1

        return hook

    hooks = []
    for name, module in net.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            hooks.append(module.register_forward_hook(after(name)))
    try:
        with torch.inference_mode():
            net(images)
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def first_diverging(calls: Sequence[Call], values: Mapping[Key, np.ndarray], tolerance: float) -> str:
    """Return the first module whose output differs by more than `tolerance` of its largest value, and by how much.

    Where there is none, the module in which the difference grows most.
    """
    errors = [(call.key, _relative_error(values[call.key], call.output)) for call in _comparable(calls, values)]
    if not errors:
        return NONE_COMPARABLE
    for key, error in errors:
        if not error <= tolerance:
            return f"{_name(key)} (relative error {error:.1e})"
    before = [0.0, *(error for _, error in errors)]
    grown = max(range(len(errors)), key=lambda i: errors[i][1] - max(before[: i + 1]))
    key, error = errors[grown]
    return f"none alone is over {tolerance:.0e}; the error grows most in {_name(key)} (to {error:.1e})"


def first_noisy(calls: Sequence[Call], values: Mapping[Key, np.ndarray]) -> str:
    """Return the module of an int8 file in which the signal to noise ratio falls furthest below all before it."""
    ratios = [(call.key, _signal_to_noise_db(values[call.key], call.output)) for call in _comparable(calls, values)]
    if not ratios:
        return NONE_COMPARABLE
    least, furthest, text = ratios[0][1], 0.0, _noise(ratios[0])
    for key, ratio in ratios[1:]:
        if least - ratio > furthest:
            furthest, text = least - ratio, f"{_name(key)} (signal to noise falls from {least:.0f} dB to {ratio:.0f})"
        least = min(least, ratio)
    if furthest < LEAST_FALL_DB:
        return f"no single one: the rounding of all of them adds up, to {least:.0f} dB"
    return text


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a copy of a tensor as float32 on the CPU."""
    return tensor.detach().to(torch.float32, copy=True).cpu().numpy()


def _comparable(calls: Sequence[Call], values: Mapping[Key, np.ndarray]) -> Iterator[Call]:
    """Yield the calls whose module was called as often in the file, with outputs of the same shape."""
    in_file, in_net = Counter(name for name, _ in values), Counter(call.key[0] for call in calls)
    for call in calls:
        name = call.key[0]
        if call.key in values and in_file[name] == in_net[name] and values[call.key].shape == call.output.shape:
            yield call


def _relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - wanted).max(initial=0) / (np.abs(wanted).max(initial=0) or 1))


def _signal_to_noise_db(got: np.ndarray, wanted: np.ndarray) -> float:
    noise = float(np.square(got.astype(np.float64) - wanted).sum())
    signal = float(np.square(wanted, dtype=np.float64).sum())
    if not np.isfinite(noise):
        return -100.0
    return float(np.clip(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)), -100, 100))


def _noise(ratio: tuple[Key, float]) -> str:
    return f"{_name(ratio[0])} (signal to noise {ratio[1]:.0f} dB)"


def _name(key: Key) -> str:
    name, number = key
    return f"{name} (call {number + 1})" if number else name
