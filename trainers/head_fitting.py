"""The new head of a net with start weights, fitted on its frozen features before the first epoch.

A random head sends random gradients into features that are good already (Kumar et al. 2022, "Fine-Tuning can Distort
Pretrained Features and Underperform Out-of-Distribution", https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

from nets.support.errors import NetError
from trainers.evaluation.validation import evaluating
from trainers.tasks.base import Batch

INVERSE_PENALTY = 0.01  # of the weights' squares, for standardised features
ITERATIONS = 300  # of L-BFGS


def fit_head(net: nn.Module, batches: Iterable[Batch]) -> float:
    """Fit the net's last linear layer to the labels by logistic regression; return its accuracy on the batches.

    `batches` are normalised images with labels, which the net sees once, in eval mode. Classes without an image keep
    weights of 0. Raises NetError where the net does not end in one linear layer.
    """
    head = last_linear(net)
    features, labels = _features(net, head, batches)  # (N, D), (N,)
    mean, std = features.mean(axis=0), features.std(axis=0).clip(min=1e-6)
    regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum is near enough for a start
        regression.fit((features - mean) / std, labels)
    weight, bias = np.zeros(tuple(head.weight.shape)), np.zeros(len(head.weight))
    rows = regression.classes_
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(rows) == 2:  # sklearn has one row for two classes
        signs = np.array([[-0.5], [0.5]])
        coefficients, intercepts = signs * coefficients, signs[:, 0] * intercepts
    weight[rows] = coefficients / std
    bias[rows] = intercepts - weight[rows] @ mean
    bias[np.setdiff1d(np.arange(len(bias)), rows)] = bias.min() - 1  # less likely than any class that was seen
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return float((np.argmax(features @ weight.T + bias, axis=1) == labels).mean())


def last_linear(net: nn.Module) -> nn.Linear:
    """Return the layer whose outputs are the logits. Raises NetError where it is not one linear layer."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    heads = getattr(net, "head_names", ("",))
    if not linear or len(heads) != 1 or linear[-1].bias is None or list(net.modules())[-1] is not linear[-1]:
        raise NetError(f"fit_head needs a net that ends in one linear layer, which {type(net).__name__} does not")
    return linear[-1]


def _features(net: nn.Module, head: nn.Linear, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the head receives (N, D) in float64, and the labels (N,)."""
    rows: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].float().cpu()))
    try:
        with evaluating(net), torch.inference_mode():
            for batch in batches:
                net(batch["image"])
                labels.append(batch["target"].cpu())
    finally:
        handle.remove()
    return torch.cat(rows).double().numpy(), torch.cat(labels).numpy()
