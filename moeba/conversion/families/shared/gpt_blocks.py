"""Blocks built like GPT's, without a gate: those of GPT-2, GPT-J, BLOOM and fairseq."""

from __future__ import annotations

import math
from typing import Any

from ....configuration import MoebaConfig
from ....configuration.model_facts import rope_of, rotated_width
from ...config_rows import Computed, ConfigRow, Fixed, Inert, Only, Pair
from ...rows import Dropped, Operation, Row, SplitGroups, linear, renamed
from .fields import CLASSIC, TRAINED_PADDING, without
from .tensors import ATTENTION_BLOCK, LAYER, MLP, QKV, fused_qkv, linears

GPT_BLOCK = "transformer.h.{layer}"

# What the configs of GPT, GPT-2, CTRL and GPT-BigCode have in common.
GPT_SIZES: tuple[ConfigRow, ...] = (
    Pair("n_layer", "num_hidden_layers"),
    Pair("n_head", "num_attention_heads"),
    Pair("n_positions", "max_position_embeddings"),
    Pair("resid_pdrop", "hidden_dropout"),
    Pair("embd_pdrop", "embedding_dropout"),
)
SUMMARY: tuple[ConfigRow, ...] = tuple(
    Inert(f"summary_{name}", "of the double-heads model only")
    for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")
)


def _feed_forward_width(native: Any) -> dict[str, Any]:
    return {"intermediate_size": native["n_inner"] or 4 * native["n_embd"]}


GPT2_FIELDS: tuple[ConfigRow, ...] = (
    *GPT_SIZES,
    Pair("n_embd", "hidden_size"),
    Pair("activation_function", "hidden_act"),
    Pair("layer_norm_epsilon", "norm_eps"),
    Pair("attn_pdrop", "attention_dropout"),
    Computed(("n_inner",), _feed_forward_width, lambda config: {"n_inner": config.intermediate_size}),
    Computed(
        ("scale_attn_weights",),
        lambda native: {"attention_multiplier": None if native["scale_attn_weights"] else 1.0},
        lambda config: {"scale_attn_weights": config.attention_multiplier != 1.0},
    ),
    Only("add_cross_attention", False, "there is no encoder to attend to"),
    *CLASSIC,
    TRAINED_PADDING,
)
# All but the branches.
GPT2_EMBEDDINGS_AND_NORMS: tuple[Row, ...] = (
    renamed("transformer.wte.weight", "model.embed_tokens.weight"),
    renamed("transformer.wpe.weight", "model.embed_positions.weight"),
    renamed("lm_head.weight", "lm_head.weight"),
    *linear("transformer.ln_f", "model.norm"),
    *linears(GPT_BLOCK, LAYER, input_layernorm="ln_1", post_attention_layernorm="ln_2"),
)


def gpt2_branches(cut: Operation, *stored: Operation) -> tuple[Row, ...]:
    """Attention and feed-forward: how the fused projection is cut, and how matrices are stored."""
    return (
        *fused_qkv(f"{GPT_BLOCK}.attn.c_attn", *stored, cut),
        *linear(f"{GPT_BLOCK}.attn.c_proj", f"{ATTENTION_BLOCK}.o_proj", *stored),
        *linear(f"{GPT_BLOCK}.mlp.c_fc", f"{MLP}.up_proj", *stored),
        *linear(f"{GPT_BLOCK}.mlp.c_proj", f"{MLP}.down_proj", *stored),
    )


def masks(attention: str) -> tuple[Dropped, ...]:
    """Buffers of an attention that older releases saved."""
    return (
        Dropped(f"{attention}.bias", "causal mask"),
        Dropped(f"{attention}.masked_bias", "value of masked scores"),
    )


GPT2_MASKS = masks(f"{GPT_BLOCK}.attn")


def _rope(native: Any) -> dict[str, Any]:
    width, rotated = native["n_embd"] // native["n_head"], native["rotary_dim"]
    factor = rotated / width
    if int(width * factor) != rotated:  # a quotient that was rounded down
        factor = math.nextafter(factor, math.inf)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}
    return {"rope_parameters": rope}


def _rope_back(config: MoebaConfig) -> dict[str, Any]:
    return {"rotary_dim": rotated_width(config) if rope_of(config) else config.head_dim}


GPTJ_FIELDS: tuple[ConfigRow, ...] = (
    *without(GPT2_FIELDS, "add_cross_attention", "scale_attn_weights"),
    Computed(("rotary_dim",), _rope, _rope_back),
    Fixed("block_order", "parallel"),
    Fixed("attention_bias", False),
    Fixed("lm_head_bias", True),
    Fixed("attention_score_dtype", "float32"),
)
# All but queries, keys and values.
GPTJ_TENSORS: tuple[Row, ...] = (
    renamed("transformer.wte.weight", "model.embed_tokens.weight"),
    *linear("transformer.ln_f", "model.norm"),
    *linear("lm_head", "lm_head"),
    *linear(f"{GPT_BLOCK}.ln_1", f"{LAYER}.input_layernorm"),
    renamed(f"{GPT_BLOCK}.attn.out_proj.weight", f"{ATTENTION_BLOCK}.o_proj.weight"),
    *linears(f"{GPT_BLOCK}.mlp", MLP, up_proj="fc_in", down_proj="fc_out"),
)
GPTJ_REORDERED = "stock rotates neighbouring entries, and divides scores by a root instead of multiplying"

# All but the norms of layers.
BLOOM_TENSORS: tuple[Row, ...] = (
    renamed("transformer.word_embeddings.weight", "model.embed_tokens.weight"),
    renamed("lm_head.weight", "lm_head.weight"),
    *linear("transformer.ln_f", "model.norm"),
    *fused_qkv(f"{GPT_BLOCK}.self_attention.query_key_value", SplitGroups()),
    *linear(f"{GPT_BLOCK}.self_attention.dense", f"{ATTENTION_BLOCK}.o_proj"),
    *linears(f"{GPT_BLOCK}.mlp", MLP, up_proj="dense_h_to_4h", down_proj="dense_4h_to_h"),
)
BLOOM_NORMS: tuple[Row, ...] = linears(
    GPT_BLOCK, LAYER, input_layernorm="input_layernorm", post_attention_layernorm="post_attention_layernorm"
)

# Of descendants of fairseq's decoder.
NO_RANDOM_CUTS: tuple[ConfigRow, ...] = (
    Only("layerdrop", 0.0, "training skips no layers"),
    Only("activation_dropout", 0.0, "there is no dropout inside feed-forwards"),
)


def fairseq_branches(theirs: str) -> tuple[Row, ...]:
    """Attention and feed-forward of a layer."""
    return (
        *linears(f"{theirs}.self_attn", ATTENTION_BLOCK, *QKV, o_proj="out_proj"),
        *linears(theirs, MLP, up_proj="fc1", down_proj="fc2"),
    )


def fairseq_norms(theirs: str) -> tuple[Row, ...]:
    """The norms before them."""
    names = {"input_layernorm": "self_attn_layer_norm", "post_attention_layernorm": "final_layer_norm"}
    return linears(theirs, LAYER, **names)
