"""DBRX: many experts of which four a token visits, clipped projections, norms without biases (Databricks 2024)."""

from __future__ import annotations

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Inert, Pair, pairs
from ..family import Family
from ..rows import FuseGateUp, Reshape, Row, Split, SwapLast, renamed
from .shared.rope import one_whole_rope, single_rope
from .shared.tensors import LAYER, ONE_PRODUCT, fused_qkv, qkv_sizes

BLOCK = "transformer.blocks.{layer}"
ATTENTION, EXPERTS = f"{BLOCK}.norm_attn_norm", f"{BLOCK}.ffn.experts.mlp"


def _clip(limit: float | None) -> float:
    if limit is None:
        raise ValueError(
            "attn_config.clip_qkv=None: the stock model has to clip queries, keys and values, and fails"
        )
    return limit


def _activation(native: Any) -> dict[str, Any]:
    given = native["ffn_config.ffn_act_fn"]
    if set(given) != {"name"}:
        raise ValueError(
            f"ffn_act_fn={given!r} is supported with a name only: the stock model reads nothing else"
        )
    return {"hidden_act": given["name"]}


def _normalised(native: Any) -> dict[str, Any]:
    power = native["ffn_config.moe_normalize_expert_weights"]
    if power not in (None, 1):
        raise ValueError(
            f"moe_normalize_expert_weights={power} is supported at 1 and None only: weights add up to 1"
        )
    return {"norm_topk_prob": power is not None}


def _rope(native: Any) -> dict[str, Any]:
    rope, meant = one_whole_rope(native), native["attn_config.rope_theta"]
    if meant not in (None, rope["rope_theta"]):
        raise ValueError(
            f"attn_config.rope_theta={meant} is not read by the stock model, which rotates by {rope['rope_theta']}: "
            f"write rope_theta={meant} beside attn_config, where it is read"
        )
    return {"rope_parameters": rope}


def _rope_back(config: MoebaConfig) -> dict[str, Any]:
    rope = single_rope(config) or {}
    # The stock code asks for the second and does not use it.
    return {"rope_parameters": rope, "attn_config.rope_theta": rope.get("rope_theta")}


# The stacked experts lie below each other in one matrix.
STACKED = Reshape(
    lambda config: (config.num_experts, config.moe_intermediate_size, config.hidden_size),
    lambda config: (config.num_experts * config.moe_intermediate_size, config.hidden_size),
)

FAMILY = Family(
    model_type="dbrx",
    architecture="DbrxForCausalLM",
    kind="moe",
    config_rows=(
        Pair("d_model", "hidden_size"),
        Pair("n_heads", "num_attention_heads"),
        Pair("n_layers", "num_hidden_layers"),
        Pair("max_seq_len", "max_position_embeddings"),
        Computed(("rope_parameters", "attn_config.rope_theta"), _rope, _rope_back),
        Pair("resid_pdrop", "hidden_dropout"),
        Pair("attn_config.attn_pdrop", "attention_dropout"),
        Pair("attn_config.clip_qkv", "clip_qkv", ours_from=_clip),
        Pair("attn_config.kv_n_heads", "num_key_value_heads"),
        Pair("ffn_config.ffn_hidden_size", "moe_intermediate_size"),
        Pair("ffn_config.moe_num_experts", "num_experts"),
        Pair("ffn_config.moe_top_k", "num_experts_per_tok"),
        Pair("ffn_config.moe_loss_weight", "router_aux_loss_coef"),
        Computed(
            ("ffn_config.moe_jitter_eps",),
            lambda native: {"router_jitter_noise": native["ffn_config.moe_jitter_eps"] or 0.0},
            lambda config: {"ffn_config.moe_jitter_eps": config.router_jitter_noise or None},
        ),
        Computed(
            ("ffn_config.ffn_act_fn",),
            _activation,
            lambda config: {"ffn_config.ffn_act_fn": {"name": config.hidden_act}},
        ),
        Computed(
            ("ffn_config.moe_normalize_expert_weights",),
            _normalised,
            lambda config: {
                "ffn_config.moe_normalize_expert_weights": 1.0 if config.norm_topk_prob else None
            },
        ),
        *pairs("output_router_logits"),
        Fixed("router_loss", "with_router_logits"),
        Inert("ffn_config.hidden_size", "the model's own, whatever it says"),
        Inert("emb_pdrop", "the stock code does not use it"),
        Fixed("norm_type", "layernorm"),
        Fixed("norm_bias", False),
        Fixed("norm_eps", 1e-5),
        Fixed("router_score_dtype", "model"),
    ),
    rows=(
        renamed("transformer.wte.weight", "model.embed_tokens.weight"),
        renamed("transformer.norm_f.weight", "model.norm.weight"),
        renamed("lm_head.weight", "lm_head.weight"),
        renamed(f"{ATTENTION}.norm_1.weight", f"{LAYER}.input_layernorm.weight"),
        renamed(f"{ATTENTION}.norm_2.weight", f"{LAYER}.post_attention_layernorm.weight"),
        *fused_qkv(f"{ATTENTION}.attn.Wqkv", Split(qkv_sizes), parts=("weight",)),
        renamed(f"{ATTENTION}.attn.out_proj.weight", f"{LAYER}.self_attn.o_proj.weight"),
        renamed(f"{BLOCK}.ffn.router.layer.weight", f"{LAYER}.mlp.gate.weight"),
        Row(
            (f"{EXPERTS}.w1", f"{EXPERTS}.v1"),
            (f"{LAYER}.mlp.experts.gate_up_proj",),
            (STACKED, FuseGateUp()),
        ),
        Row((f"{EXPERTS}.w2",), (f"{LAYER}.mlp.experts.down_proj",), (STACKED, SwapLast())),
    ),
    base_prefix="transformer.",
    reordered=f"{ONE_PRODUCT}, and the experts' last matrices lie transposed",
)
