"""Random mixtures of experts, native and Moeba, for tests of what reshapes them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import native
import pytest
import torch
from native import load
from support import SIZES, SPARSE, random_ids, randomise

from moeba import MoebaConfig, MoebaForCausalLM, MoebaTokenizer
from moeba.conversion.checkpoint import Checkpoint

TEXT = Path(argparse.__file__).read_text(encoding="utf-8")
# Plain shapes, which Mixtral and Llama can hold; three layers.
PLAIN: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3,
    hidden_act="silu", tie_word_embeddings=False, head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0}, max_position_embeddings=128,
)  # fmt: skip


@cache
def tokenizer() -> MoebaTokenizer:
    return MoebaTokenizer.train([TEXT], vocab_size=300)


def mixture(folder: Path, edit: Callable[[Any], None] | None = None, **fields: Any) -> Path:
    """A Moeba mixture of 12 experts a layer with a tokenizer, and `text` beside it.

    Args:
        edit: changes the random model before it is saved.
    """
    sizes = {**SIZES, **SPARSE, "vocab_size": len(tokenizer()), "max_position_embeddings": 128, **fields}
    model = randomise(MoebaForCausalLM(MoebaConfig.from_dict(sizes))).eval()
    if edit is not None:
        with torch.no_grad():
            edit(model)
    model.save_pretrained(folder)
    return with_text(folder)


def native_mixture(folder: Path, model_type: str, **fields: Any) -> Path:
    """The same of a native family."""
    native.make(folder, model_type, **fields, vocab_size=len(tokenizer()))
    return with_text(folder)


def with_text(folder: Path) -> Path:
    tokenizer().save_pretrained(folder)
    (folder.parent / "text").write_text(TEXT[:8000])
    return folder


def logits(folder: Path, model_class: Any = MoebaForCausalLM) -> torch.Tensor:
    model = load(model_class, folder)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(random_ids(2, 40, model.config.vocab_size)).logits


def assert_same_function(
    first: Path, second: Path, model_class: Any = MoebaForCausalLM, source_class: Any = MoebaForCausalLM
) -> None:
    """Sums over several experts: within a few units in the last place of the logits' spread."""
    a, b = logits(first, source_class), logits(second, model_class)
    assert (a - b).abs().max() <= 2e-5 * a.std(), (a - b).abs().max() / a.std()


def generates(folder: Path, model_class: Any) -> None:
    """The model of a folder loads by its Auto class, and writes."""
    model = load(model_class, folder)
    with torch.no_grad():
        out = model.generate(
            torch.tensor([[1, 2, 3]]), max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0
        )
    assert out.shape == (1, 7)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
