"""BERT as a decoder, with a language model's head on BERT's own block (Rothe et al. 2020)."""

from __future__ import annotations

from typing import Any

from ..config_rows import Computed, Fixed, Only, Pair, pairs
from ..family import Family
from ..rows import linear, renamed
from .shared.fields import CLASSIC, dropout_everywhere
from .shared.tensors import LAYER, linears

BLOCK = "bert.encoder.layer.{layer}"
HEAD = "lm_head.decoder"


def _head(native: Any) -> dict[str, Any]:
    """The stock model ties the biases of the head where it ties its weight."""
    if not native["tie_word_embeddings"]:
        raise ValueError(
            "tie_word_embeddings=False is supported at True only: the stock head has two biases then, and uses one"
        )
    return {"lm_head_bias": True}


FAMILY = Family(
    model_type="bert-generation",
    architecture="BertGenerationDecoder",
    kind="dense",
    config_rows=(
        *pairs("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
        *pairs("max_position_embeddings"),
        Pair("attention_probs_dropout_prob", "attention_dropout"),
        dropout_everywhere("hidden_dropout_prob"),
        Pair("layer_norm_eps", "norm_eps"),
        Only("is_decoder", True, "each token of an encoder sees the whole text"),
        Only("add_cross_attention", False, "there is no encoder to attend to"),
        Computed((), _head, lambda config: {}),
        *CLASSIC,
        Fixed("block_order", "post_norm"),
        Fixed("final_norm", False),
        Fixed("embedding_norm", True),
        Fixed("position_embedding_type", "learned"),
    ),
    rows=(
        renamed("bert.embeddings.word_embeddings.weight", "model.embed_tokens.weight"),
        renamed("bert.embeddings.position_embeddings.weight", "model.embed_positions.weight"),
        *linear("bert.embeddings.LayerNorm", "model.embed_norm"),
        renamed(f"{HEAD}.weight", "lm_head.weight"),
        renamed("lm_head.bias", "lm_head.bias"),
        *linears(
            f"{BLOCK}.attention", f"{LAYER}.self_attn",
            q_proj="self.query", k_proj="self.key", v_proj="self.value", o_proj="output.dense",
        ),
        *linears(
            BLOCK, LAYER,
            post_attention_layernorm="attention.output.LayerNorm", post_feedforward_layernorm="output.LayerNorm",
        ),
        *linears(BLOCK, f"{LAYER}.mlp", up_proj="intermediate.dense", down_proj="output.dense"),
    ),
    base_prefix="bert.",
)  # fmt: skip
