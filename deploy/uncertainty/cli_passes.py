"""The repeated passes that the flags of inference_uncertain.py ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from artifacts.formats import artifact_kind
from artifacts.metadata import ModelMetadata
from deploy.backends.base import Backend
from deploy.backends.loading import load_backend
from deploy.uncertainty.cli_args import DEFAULT_PASSES
from deploy.uncertainty.multi_pass import Passes, dropout_passes, ensemble_passes, view_passes
from deploy.uncertainty.outputs import config_of


def passes_of(args: argparse.Namespace, backend: Backend, metadata: ModelMetadata, weights: Path) -> Passes | None:
    """Return the passes that the flags ask for, None for a single one. Raises UserError."""
    if args.others:
        others = [load_backend(path, device=args.device, runtime=args.runtime) for path in args.others]
        return ensemble_passes([(backend, metadata), *others])
    if args.repeat == "dropout":
        return dropout_passes(backend, metadata, args.passes or DEFAULT_PASSES)
    if args.repeat == "views":
        return view_passes(backend, metadata, args.views or trained_views(weights))
    return None


def trained_views(weights: Path) -> tuple[str, ...]:
    """Return shift and scale, and flip where the net was trained on flipped images: a flipped 2 is no 2."""
    config = config_of(weights) if artifact_kind(weights) == "checkpoint" else None
    flips = config is not None and config.data_aug and config.horizontal_flip > 0
    return ("flip", "shift", "scale") if flips else ("shift", "scale")
