"""Hunyuan: Llama with a norm on each query and key head, behind the rotation (Tencent 2025)."""

from typing import Any

from ..config_rows import Computed, Fixed, Inert, Pair, Stated
from ..family import Family
from ..rows import renamed
from .shared_fields import ATTENTION_BIAS, SIZES, one_rope, single_rope, whole_heads, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, LAYER, PRE_NORMS


def _stretched_rope(native: Any) -> dict[str, Any]:
    rope = whole_heads(one_rope(native["rope_parameters"]))
    alpha, width = rope.get("alpha"), native["head_dim"]
    if rope["rope_type"] == "dynamic" and alpha:  # in name only: the base grows once and for all
        rope = {"rope_type": "default", "rope_theta": rope["rope_theta"] * alpha ** (width / (width - 2))}
    return {"rope_parameters": rope}


FAMILY = Family(
    model_type="hunyuan_v1_dense",
    architecture="HunYuanDenseV1ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "rope_parameters"),
        Computed(
            ("rope_parameters",), _stretched_rope, lambda config: {"rope_parameters": single_rope(config)}
        ),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        Inert("pretraining_tp", "a way to slice the products of one training setup"),
        Inert("eod_token_id", "a token between documents, for whoever packs them"),
        Fixed("qk_norm", "head"),
        Fixed("qk_norm_after_rope", True),
        Stated("use_qk_norm", True, "vLLM and SGLang leave the norms out where it is not said"),
        Stated("use_cla", False, "vLLM shares keys and values between layers where it says so"),
        Stated("use_rotary_pos_emb", True, "the authors' code rotates where it says so"),
        Stated("position_embedding_xdrope", False, "the authors' code rotates otherwise where it says so"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *GATED_MLP,
        *PRE_NORMS,
        renamed(f"{LAYER}.self_attn.query_layernorm.weight", f"{LAYER}.self_attn.q_norm.weight"),
        renamed(f"{LAYER}.self_attn.key_layernorm.weight", f"{LAYER}.self_attn.k_norm.weight"),
    ),
)
