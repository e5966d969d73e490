"""Sizes, first lines of errors, and hints at the name that was meant."""

from __future__ import annotations

import pytest

from common.formatting import did_you_mean, first_line, nearest_names, short_json, size_text

KEYS = ["learning_rate", "num_epochs", "batch_size", "val_batch_size"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learing_rate", '; did you mean "learning_rate"?'),
        ("batchsize", '; did you mean "batch_size"?'),
        ("Learning_Rate", '; did you mean "learning_rate"?'),
        ("LEARNING_RATE", ""),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_did_you_mean(name: str, hint: str) -> None:
    assert did_you_mean(name, KEYS) == hint


def test_did_you_mean_in_any_case() -> None:
    assert did_you_mean("LEARNING_RATE", KEYS, ignore_case=True) == '; did you mean "learning_rate"?'
    names = ["Rose", "ROSE", "rosy"]
    assert did_you_mean("rose", names, ignore_case=True) == '; did you mean "Rose"?'  # of equals the first
    assert did_you_mean("rose", names, ignore_case=True, count=3) == '; did you mean "Rose", "rosy"?'
    assert nearest_names("batch_size", KEYS, count=2) == ["batch_size", "val_batch_size"]
    assert did_you_mean("x", []) == ""


def test_first_line() -> None:
    assert first_line(ValueError("\n \n  first  \nsecond")) == "first"
    assert first_line(ValueError()) == first_line(ValueError(" \n")) == "ValueError"


def test_sizes() -> None:
    assert [size_text(size) for size in (0, 1_500_000, 999_000_000, 1_500_000_000)] == [
        "0.0 MB",
        "1.5 MB",
        "999.0 MB",
        "1.5 GB",
    ]


def test_short_json() -> None:
    assert short_json({"花": [1, None]}) == '{"花": [1, null]}'
    assert short_json("x" * 58) == '"' + "x" * 58 + '"'
    assert short_json("x" * 59) == '"' + "x" * 56 + "..."
    assert short_json({1}) == '"{1}"'
