"""Gemma, Gemma 2, VaultGemma and the language model of Gemma 3."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, layer_types, llama_like, maybe, rope


@draws("gemma")
def gemma(rng: random.Random, model_type: str) -> dict[str, Any]:
    return llama_like(rng) | {
        "attention_bias": chance(rng),
        "use_bidirectional_attention": rng.choice([None, False]),
    }


@draws("gemma2", "vaultgemma", "gemma3_text")
def since_gemma2(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng)
    fields |= dict(
        hidden_activation=fields.pop("hidden_act"),
        attention_bias=chance(rng),
        query_pre_attn_scalar=rng.choice([fields["head_dim"], 5, 144, 256]),
        sliding_window=rng.choice([2, 3, 9]),
        final_logit_softcapping=rng.choice([None, 30.0, 1.5]),
        attn_logit_softcapping=rng.choice([None, 50.0, 0.7]),
    )
    fields |= maybe(rng, layer_types=layer_types(rng, fields["num_hidden_layers"]))
    if model_type != "vaultgemma":
        fields |= {"use_bidirectional_attention": rng.choice([None, False])}
    if model_type == "gemma3_text":
        # Each kind of layer has a rope of its own; by default, Gemma 3's two.
        kinds = ("full_attention", "sliding_attention")
        del fields["rope_parameters"]
        fields |= maybe(
            rng, 0.8, rope_parameters={kind: rope(rng, fields["head_dim"], by_kind=True) for kind in kinds}
        )
    return fields
