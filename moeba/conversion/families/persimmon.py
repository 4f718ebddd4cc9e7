"""Persimmon: fused attention and a plain feed-forward with squared ReLU between layer norms (Elsen et al. 2023)."""

from ..config_rows import Only, Pair
from ..family import Family
from ..rows import SplitGroups, linear, same
from .shared.fields import CLASSIC, SIZES, switch, without
from .shared.rope import PARTIAL_ROPE, rotated_share
from .shared.tensors import LAYER, ONE_PRODUCT, PRE_LAYER_NORMS, fused_qkv, linears

FAMILY = Family(
    model_type="persimmon",
    architecture="PersimmonForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim", "num_key_value_heads", "rope_parameters"),
        PARTIAL_ROPE,
        rotated_share(),
        Pair("layer_norm_eps", "norm_eps"),
        switch("qk_layernorm", "qk_norm", on="head", off="none"),
        Only("hidden_dropout", 0.0, "it would drop the feed-forward's output, but not the attention's"),
        *CLASSIC,
    ),
    rows=(
        *same("model.embed_tokens.weight", "lm_head.weight"),
        *linear("model.final_layernorm", "model.norm"),
        *PRE_LAYER_NORMS,
        *fused_qkv(f"{LAYER}.self_attn.query_key_value", SplitGroups()),
        *linears(
            f"{LAYER}.self_attn",
            f"{LAYER}.self_attn",
            q_norm="q_layernorm",
            k_norm="k_layernorm",
            o_proj="dense",
        ),
        *linears(f"{LAYER}.mlp", f"{LAYER}.mlp", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h"),
    ),
    reordered=ONE_PRODUCT,
)
