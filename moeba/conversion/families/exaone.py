"""EXAONE 3: the Llama model under GPT-2's names for its tensors (LG 2024)."""

from dataclasses import replace

from ..rows import renamed, same
from .llama import FAMILY as LLAMA
from .shared_fields import without
from .shared_tensors import ATTENTION_BLOCK, LAYER, MLP, linears

BLOCK = "transformer.h.{layer}"

FAMILY = replace(
    LLAMA,
    model_type="exaone",
    since="5.24",
    config_rows=without(LLAMA.config_rows, "pretraining_tp"),
    rows=(
        renamed("transformer.wte.weight", "model.embed_tokens.weight"),
        renamed("transformer.ln_f.weight", "model.norm.weight"),
        *same("lm_head.weight"),
        *linears(f"{BLOCK}.attn.attention", ATTENTION_BLOCK, "q_proj", "k_proj", "v_proj", o_proj="out_proj"),
        *linears(f"{BLOCK}.mlp", MLP, gate_proj="c_fc_0", up_proj="c_fc_1", down_proj="c_proj"),
        renamed(f"{BLOCK}.ln_1.weight", f"{LAYER}.input_layernorm.weight"),
        renamed(f"{BLOCK}.ln_2.weight", f"{LAYER}.post_attention_layernorm.weight"),
    ),
    dropped=(),
    # Of the authors' code.
    base_prefix="transformer.",
)
