"""Blocks built like Llama's, that more than one family has: of Llama, OLMo 2, GLM, Command R, Hunyuan and Apertus."""

from __future__ import annotations

from typing import Any

from ....configuration import MoebaConfig
from ...config_rows import Computed, ConfigRow, Fixed, Inert, Pair, Stated, pairs
from ...rows import Row, renamed, same
from .experts import GROUPED_EXPERTS, PREDICTION_COUNT, ROUTED_AS, sparse_layers
from .fields import (
    ATTENTION_BIAS,
    SIZES,
    SIZES_HEAD_DIM_UNLISTED,
    SLICED,
    scaled_logits,
    switch,
    without,
)
from .rope import PARTIAL_ROPE, one_whole_rope, rotated_share, single_rope
from .tensors import (
    ATTENTION,
    ATTENTION_BLOCK,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    INTERLEAVED_ATTENTION,
    LAYER,
    PLAIN_MLP,
    PRE_NORMS,
    QK_NORM,
)

LLAMA_FIELDS: tuple[ConfigRow, ...] = (
    *SIZES,
    *pairs("mlp_bias"),
    Pair("rms_norm_eps", "norm_eps"),
    ATTENTION_BIAS,
)

OLMO2_FIELDS: tuple[ConfigRow, ...] = (
    *SIZES_HEAD_DIM_UNLISTED,
    ATTENTION_BIAS,
    Pair("rms_norm_eps", "norm_eps"),
    Fixed("norm_type", "rmsnorm_float32"),
    Fixed("block_order", "output_norm"),
    Fixed("qk_norm", "full"),
    Fixed("rotary_precision", "float32"),
)


def _rope_ratio(config: MoebaConfig) -> float:
    return float((single_rope(config) or {}).get("rope_theta", 10_000) / 10_000)


_OF_GLMS_AUTHORS = (
    ("rope_ratio", _rope_ratio, "the base of rotations"),
    ("layernorm_epsilon", lambda config: config.norm_eps, "the norms' epsilon"),
    ("seq_length", lambda config: config.max_position_embeddings, "the longest context"),
)
GLM_FIELDS: tuple[ConfigRow, ...] = (
    *without(SIZES, "rope_parameters"),
    PARTIAL_ROPE,
    rotated_share(),
    *pairs("attention_bias"),
    Pair("rms_norm_eps", "norm_eps"),
    Fixed("attention_output_bias", False),
    *(
        Stated(name, value, f"llama.cpp's converter takes {what} from it, as the authors' code does")
        for name, value, what in _OF_GLMS_AUTHORS
    ),
)
GLM_REORDERED = "stock rotates neighbouring entries, whose products with the keys are added in another order"
# GLM-4.5, but for the width of its heads.
GLM_MOE_FIELDS: tuple[ConfigRow, ...] = (
    *without(SIZES, "head_dim", "rope_parameters"),
    PARTIAL_ROPE,
    rotated_share(),
    *pairs("attention_bias"),
    Fixed("attention_output_bias", False),
    Pair("rms_norm_eps", "norm_eps"),
    switch("use_qk_norm", "qk_norm", on="head", off="none"),
    *GROUPED_EXPERTS,
    sparse_layers("first_k_dense_replace"),
    PREDICTION_COUNT,
    *ROUTED_AS,
)

COHERE_FIELDS: tuple[ConfigRow, ...] = (
    *SIZES_HEAD_DIM_UNLISTED,
    ATTENTION_BIAS,
    scaled_logits("logit_scale", "multiply"),
    Pair("layer_norm_eps", "norm_eps"),
    Fixed("norm_type", "layernorm_float32"),
    Fixed("block_order", "parallel_stream_first"),
    Fixed("rotary_precision", "float32_product"),
)
COHERE_TENSORS: tuple[Row, ...] = (
    *EMBEDDINGS_AND_HEAD,
    *INTERLEAVED_ATTENTION,
    *GATED_MLP,
    *same(f"{LAYER}.input_layernorm.weight"),
)
COHERE_REORDERED = (
    "the channels of a head that rope turns together lie side by side in the stock model's scores"
)


def _stretched_rope(native: Any) -> dict[str, Any]:
    rope, width = one_whole_rope(native), native["head_dim"]
    alpha = rope.get("alpha")
    if rope["rope_type"] == "dynamic" and alpha:  # in name only: the base grows once and for all
        rope = {"rope_type": "default", "rope_theta": rope["rope_theta"] * alpha ** (width / (width - 2))}
    return {"rope_parameters": rope}


HUNYUAN_FIELDS: tuple[ConfigRow, ...] = (
    *without(SIZES, "rope_parameters"),
    Computed(("rope_parameters",), _stretched_rope, lambda config: {"rope_parameters": single_rope(config)}),
    Pair("rms_norm_eps", "norm_eps"),
    ATTENTION_BIAS,
    SLICED,
    Inert("eod_token_id", "a token between documents, for whoever packs them"),
    Fixed("qk_norm", "head"),
    Fixed("qk_norm_after_rope", True),
    Stated("use_qk_norm", True, "vLLM and SGLang leave the norms out where it is not said"),
    Stated("use_cla", False, "vLLM shares keys and values between layers where it says so"),
    Stated("use_rotary_pos_emb", True, "the authors' code rotates where it says so"),
    Stated("position_embedding_xdrope", False, "the authors' code rotates otherwise where it says so"),
)
# All but the feed-forwards.
HUNYUAN_TENSORS: tuple[Row, ...] = (
    *EMBEDDINGS_AND_HEAD,
    *ATTENTION,
    *PRE_NORMS,
    renamed(f"{ATTENTION_BLOCK}.query_layernorm.weight", f"{ATTENTION_BLOCK}.q_norm.weight"),
    renamed(f"{ATTENTION_BLOCK}.key_layernorm.weight", f"{ATTENTION_BLOCK}.k_norm.weight"),
)

APERTUS_FIELDS: tuple[ConfigRow, ...] = (
    *SIZES_HEAD_DIM_UNLISTED,
    Pair("rms_norm_eps", "norm_eps"),
    ATTENTION_BIAS,
    Fixed("feed_forward_type", "mlp"),
    Fixed("qk_norm", "head"),
)
APERTUS_TENSORS: tuple[Row, ...] = (
    *EMBEDDINGS_AND_HEAD,
    *ATTENTION,
    *QK_NORM,
    *PLAIN_MLP,
    *same(*(f"{LAYER}.mlp.act_fn.{name}" for name in ("alpha_p", "alpha_n", "beta", "eps"))),
    renamed(f"{LAYER}.attention_layernorm.weight", f"{LAYER}.input_layernorm.weight"),
    renamed(f"{LAYER}.feedforward_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight"),
)
