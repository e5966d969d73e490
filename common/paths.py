"""The project's folder, and the ending of packs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK_ENDING = "-tfrecord"  # of a pack's shards; a config's list that ends so is a pattern of them
