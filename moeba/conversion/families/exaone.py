"""EXAONE 3: the Llama model under GPT-2's names for its tensors (LG 2024)."""

from ..family import Family
from ..rows import renamed, same
from .shared.gpt_blocks import GPT_BLOCK
from .shared.llama_blocks import LLAMA_FIELDS
from .shared.tensors import ATTENTION_BLOCK, LAYER, MLP, QKV, linears

FAMILY = Family(
    model_type="exaone",
    architecture="LlamaForCausalLM",
    kind="dense",
    since="5.24",
    config_rows=LLAMA_FIELDS,
    rows=(
        renamed("transformer.wte.weight", "model.embed_tokens.weight"),
        renamed("transformer.ln_f.weight", "model.norm.weight"),
        *same("lm_head.weight"),
        *linears(f"{GPT_BLOCK}.attn.attention", ATTENTION_BLOCK, *QKV, o_proj="out_proj"),
        *linears(f"{GPT_BLOCK}.mlp", MLP, gate_proj="c_fc_0", up_proj="c_fc_1", down_proj="c_proj"),
        renamed(f"{GPT_BLOCK}.ln_1.weight", f"{LAYER}.input_layernorm.weight"),
        renamed(f"{GPT_BLOCK}.ln_2.weight", f"{LAYER}.post_attention_layernorm.weight"),
    ),
    # Of the authors' code.
    base_prefix="transformer.",
)
