"""Each ATen operator as TensorRT's layers; a net with any other operator is refused.

Every function takes a Builder and the operator's own arguments: Values (they depend on the input), Constants, numbers
and sizes. It returns the operator's result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pytorch2json.operators import indexing, layers, pointwise, pooling, reductions

UNARY = {name: name for name in ("exp", "log", "sqrt", "abs", "neg", "erf", "floor", "ceil")} | {
    "reciprocal": "recip",
    "logical_not": "not",
}
ELEMENTWISE = {
    **{"add.Tensor": "sum", "sub.Tensor": "sub", "mul.Tensor": "prod", "div.Tensor": "div"},
    **{"maximum.default": "max", "minimum.default": "min"},
    **dict.fromkeys(("eq.Scalar", "eq.Tensor"), "equal"),
    **dict.fromkeys(("lt.Scalar", "lt.Tensor"), "less"),
    **dict.fromkeys(("gt.Scalar", "gt.Tensor"), "greater"),
}
RESHAPES = ("view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unsqueeze.default")
UNCHANGED = ("clone.default", "alias.default", "detach.default", "contiguous.default", "dropout.default")
RESIZES = {"upsample_nearest2d": "nearest", "upsample_bilinear2d": "linear", "upsample_bicubic2d": "cubic"}
HARD_SIGMOID: dict[str, Any] = {"operation": "hard_sigmoid", "alpha": 1 / 6, "beta": 0.5}

_OPERATORS: dict[str, Callable[..., Any]] = {  # without the "aten." before each name
    **dict.fromkeys(("conv1d.default", "conv2d.default"), layers.convolution),
    "conv_transpose2d.input": layers.deconvolution,
    "_native_batch_norm_legit_no_training.default": layers.batch_norm,
    "linear.default": layers.linear,
    **dict.fromkeys(("matmul.default", "mm.default", "bmm.default"), layers.matmul),
    "scaled_dot_product_attention.default": layers.attention,
    "layer_norm.default": layers.layer_norm,
    "group_norm.default": layers.group_norm,
    "max_pool2d.default": pooling.max_pool,
    "avg_pool2d.default": pooling.average_pool,
    "adaptive_avg_pool2d.default": pooling.adaptive_average_pool,
    **{f"{name}.vec": partial(pooling.upsample, mode=mode) for name, mode in RESIZES.items()},
    **{f"{name}.default": partial(pooling.upsample, mode=mode) for name, mode in RESIZES.items()},
    **{f"{name}.default": partial(pointwise.activation, operation=name) for name in ("relu", "sigmoid", "tanh")},
    "hardsigmoid.default": partial(pointwise.activation, **HARD_SIGMOID),
    "hardswish.default": partial(pointwise.gated, **HARD_SIGMOID),
    "silu.default": partial(pointwise.gated, operation="sigmoid"),
    "gelu.default": pointwise.gelu,
    "hardtanh.default": pointwise.hardtanh,
    "relu6.default": partial(pointwise.hardtanh, low=0.0, high=6.0),
    "leaky_relu.default": pointwise.leaky_relu,
    "elu.default": pointwise.elu,
    **dict.fromkeys(("clamp.default", "clamp_min.default"), pointwise.clamp),
    **{f"{name}.default": partial(pointwise.unary, operation=operation) for name, operation in UNARY.items()},
    "rsqrt.default": pointwise.rsqrt,
    **{name: partial(pointwise.elementwise, operation=operation) for name, operation in ELEMENTWISE.items()},
    "addcmul.default": pointwise.addcmul,
    **dict.fromkeys(("ne.Scalar", "ne.Tensor"), pointwise.not_equal),
    **dict.fromkeys(("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar"), pointwise.power),
    "masked_fill.Scalar": pointwise.masked_fill,
    "where.self": pointwise.where,
    **dict.fromkeys(("_to_copy.default", "to.dtype"), pointwise.cast),
    **dict.fromkeys(UNCHANGED, pointwise.same),
    "mean.dim": partial(reductions.reduce, operation="avg"),
    "sum.dim_IntList": partial(reductions.reduce, operation="sum"),
    "amax.default": partial(reductions.reduce, operation="max"),
    "amin.default": partial(reductions.reduce, operation="min"),
    "linalg_vector_norm.default": reductions.vector_norm,
    **dict.fromkeys(("softmax.int", "_softmax.default"), reductions.softmax),
    "log_softmax.int": partial(reductions.softmax, logarithm=True),
    "topk.default": reductions.topk,
    "argmax.default": reductions.argmax,
    "gather.default": indexing.gather,
    "index.Tensor": indexing.index,
    "index_select.default": indexing.index_select,
    "select.int": indexing.select,
    "roll.default": indexing.roll,
    "flip.default": indexing.flip,
    "permute.default": indexing.permute,
    "transpose.int": indexing.transpose,
    **dict.fromkeys((*RESHAPES, "squeeze.dim", "squeeze.dims"), indexing.reshape),
    "cat.default": indexing.concatenation,
    "stack.default": indexing.stack,
    "slice.Tensor": indexing.slices,
    **dict.fromkeys(("split.Tensor", "split_with_sizes.default", "chunk.default"), indexing.split),
    "unbind.int": indexing.unbind,
    **dict.fromkeys(("pad.default", "constant_pad_nd.default"), indexing.pad),
    "expand.default": indexing.expand,
    **dict.fromkeys(("full.default", "zeros.default"), indexing.filled),
}
OPERATORS = {f"aten.{name}": function for name, function in _OPERATORS.items()}
