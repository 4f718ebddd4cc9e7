"""Phi: attention and a plain feed-forward side by side on one layer norm, partial rotation (Gunasekar et al. 2023)."""

from ..config_rows import Computed, Fixed, Pair
from ..family import Family
from ..rows import linear, renamed
from .shared.fields import CLASSIC, SIZES, switch, without
from .shared.rope import PARTIAL_ROPE, rotated_share
from .shared.tensors import LAYER, QKV, linears

FAMILY = Family(
    model_type="phi",
    architecture="PhiForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim", "rope_parameters"),
        Computed(
            (),  # rounded down
            lambda native: {"head_dim": native["hidden_size"] // native["num_attention_heads"]},
            lambda config: {},
        ),
        PARTIAL_ROPE,
        rotated_share(),
        Pair("layer_norm_eps", "norm_eps"),
        Pair("resid_pdrop", "hidden_dropout"),
        Pair("embd_pdrop", "embedding_dropout"),
        switch("qk_layernorm", "qk_norm", on="head", off="none"),
        *CLASSIC,
        Fixed("block_order", "parallel"),
        Fixed("lm_head_bias", True),
    ),
    rows=(
        renamed("model.embed_tokens.weight", "model.embed_tokens.weight"),
        *linear("model.final_layernorm", "model.norm"),
        *linear("lm_head", "lm_head"),
        *linear(f"{LAYER}.input_layernorm", f"{LAYER}.input_layernorm"),
        *linears(f"{LAYER}.self_attn", f"{LAYER}.self_attn", *QKV, o_proj="dense"),
        *linears(f"{LAYER}.self_attn", f"{LAYER}.self_attn", q_norm="q_layernorm", k_norm="k_layernorm"),
        *linears(f"{LAYER}.mlp", f"{LAYER}.mlp", up_proj="fc1", down_proj="fc2"),
    ),
)
