"""MPT: alibi, clipped projections, no biases at all (MosaicML 2023).

The stock code reads few of the many fields: the others are supported at what it does.
"""

from typing import Any

from ..config_rows import Computed, Fixed, Inert, Only, Pair
from ..family import Family
from ..rows import Split, renamed
from .shared.fields import TRAINED_PADDING, fourfold_width
from .shared.tensors import LAYER, ONE_PRODUCT, fused_qkv, qkv_sizes

BLOCK = "transformer.blocks.{layer}"
NORM_TYPES = ("low_precision_layernorm", "layernorm")


def _norm_type(native: Any) -> dict[str, Any]:
    if native["norm_type"] not in NORM_TYPES:
        raise ValueError(
            f"norm_type={native['norm_type']!r} is none of {', '.join(NORM_TYPES)}: the stock norms are layer norms"
        )
    return {"norm_type": "layernorm", "norm_bias": False}


FAMILY = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    served_as="MPTForCausalLM",
    kind="dense",
    config_rows=(
        fourfold_width("d_model"),
        Pair("n_heads", "num_attention_heads"),
        Pair("n_layers", "num_hidden_layers"),
        Pair("max_seq_len", "max_position_embeddings"),
        Pair("layer_norm_epsilon", "norm_eps"),
        Computed(("norm_type",), _norm_type, lambda config: {"norm_type": NORM_TYPES[0]}),
        Computed(
            ("attn_config.clip_qkv",),
            lambda native: {"clip_qkv": native["attn_config.clip_qkv"] or None},  # 0.0 clips nothing
            lambda config: {"attn_config.clip_qkv": config.clip_qkv},
        ),
        Pair("attn_config.softmax_scale", "attention_multiplier"),
        Only("attn_config.alibi", True, "the stock model always has alibi"),
        Only("attn_config.alibi_bias_max", 8, "the stock model always takes 8"),
        Only("attn_config.attn_type", "multihead_attention", "the stock model has no other attention"),
        Only("attn_config.prefix_lm", False, "the stock model has no prefix in which tokens see each other"),
        Only("attn_config.qk_ln", False, "the stock model has no norms of queries and keys"),
        Only("attn_config.attn_uses_sequence_id", False, "the stock model takes no sequence ids"),
        Only("attn_config.attn_pdrop", 0, "the stock config takes no fraction"),
        Inert("attn_config.attn_impl", "the stock model has one implementation"),
        Only("expansion_ratio", 4, "the stock model always takes 4"),
        Only("logit_scale", None, "the stock model does not scale logits"),
        Only("no_bias", True, "the stock model has no biases"),
        Inert("learned_pos_emb", "of a model without alibi"),
        Inert("embedding_fraction", "scales gradients in the original code, and the stock code does not read it"),
        Inert("resid_pdrop", "the stock code does not read it"),
        Inert("emb_pdrop", "the stock code does not read it"),
        Inert("init_device", "where weights were made"),
        Fixed("position_embedding_type", "alibi"),
        Fixed("alibi_dtype", "float32"),
        Fixed("feed_forward_type", "mlp"),
        TRAINED_PADDING,
        Fixed("hidden_act", "gelu"),
    ),
    rows=(
        renamed("transformer.wte.weight", "model.embed_tokens.weight"),
        renamed("transformer.norm_f.weight", "model.norm.weight"),
        renamed("lm_head.weight", "lm_head.weight"),
        renamed(f"{BLOCK}.norm_1.weight", f"{LAYER}.input_layernorm.weight"),
        renamed(f"{BLOCK}.norm_2.weight", f"{LAYER}.post_attention_layernorm.weight"),
        *fused_qkv(f"{BLOCK}.attn.Wqkv", Split(qkv_sizes), parts=("weight",)),
        renamed(f"{BLOCK}.attn.out_proj.weight", f"{LAYER}.self_attn.o_proj.weight"),
        renamed(f"{BLOCK}.ffn.up_proj.weight", f"{LAYER}.mlp.up_proj.weight"),
        renamed(f"{BLOCK}.ffn.down_proj.weight", f"{LAYER}.mlp.down_proj.weight"),
    ),
    base_prefix="transformer.",
    reordered=ONE_PRODUCT,
)  # fmt: skip
