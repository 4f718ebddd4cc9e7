"""Configs that no draw was written for: any one field changed is computed as the stock model does, or refused.

What the stock classes themselves refuse, or fail on, is passed over.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from family_case import Case
from native import config_from, plain
from parity import assert_same_logits
from transformers import AutoModelForCausalLM, PreTrainedConfig

from moeba.conversion import FAMILIES

CHANGES = 6  # configs a family
COMMON = {field.name for field in fields(PreTrainedConfig)} | {"vocab_size"}


def another(name: str, value: Any) -> Any:
    """Another value of the same kind; None where there is none to try."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value * 1.5 if value else 0.25
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str) and ("act" in name or name == "afn"):
        return "relu2"
    return None


def changed(model_type: str) -> Iterator[tuple[str, PreTrainedConfig]]:
    """The name of a field, and a draw with another value of it that the stock model runs with."""
    rng = random.Random(model_type)
    drawn = config_from(model_type, rng)
    names = [field.name for field in fields(type(drawn)) if field.name not in COMMON and field.name[0] != "_"]
    rng.shuffle(names)
    for name in names:
        value = another(name, getattr(drawn, name, None))
        if value is None or "drop" in name:
            continue
        try:
            config = type(drawn)(**{**plain(drawn), name: value})
            stock = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
            with torch.no_grad():
                finite = stock(torch.arange(1, 13)[None]).logits.isfinite().all()
        except Exception:  # stock code raises anything at a config it does not support
            continue
        if finite:
            yield name, config


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_one_field_changed(tmp_path, model_type):
    proven = 0
    for name, config in changed(model_type):
        case = Case(config, tmp_path / name, seed=1)
        (tmp_path / name).mkdir()
        try:
            case.moeba  # noqa: B018
        except ValueError as error:
            assert f"{model_type} config" in str(error) or "config.json has fields" in str(error)
            continue
        assert_same_logits(case, case.ours, case.theirs)
        proven += 1
        if proven == CHANGES:
            break
    assert proven >= 3
