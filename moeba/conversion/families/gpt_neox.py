"""GPT-NeoX: attention and feed-forward side by side, each after a layer norm of its own (Black et al. 2022)."""

from ..config_rows import Fixed, Inert, Pair, pairs
from ..family import Family
from ..rows import SplitGroups, linear, renamed
from .shared.fields import ATTENTION_BIAS, SIZES, TRAINED_PADDING, dropout_everywhere, switch, without
from .shared.gpt_blocks import masks
from .shared.rope import PARTIAL_ROPE, rotated_share
from .shared.tensors import LAYER, ONE_PRODUCT, fused_qkv, linears

BLOCK = "gpt_neox.layers.{layer}"

FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim", "num_key_value_heads", "rope_parameters"),
        PARTIAL_ROPE,
        *pairs("classifier_dropout"),
        Pair("layer_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        switch("use_parallel_residual", "block_order", on="parallel_two_norms", off="pre_norm"),
        dropout_everywhere("hidden_dropout"),
        Inert("is_decoder", "the stock code does not read it"),
        rotated_share("rotary_pct"),
        Inert("rotary_emb_base", "older spelling, which the stock class moves into rope_parameters"),
        TRAINED_PADDING,
        Fixed("norm_type", "layernorm"),
        Fixed("feed_forward_type", "mlp"),
        Fixed("mlp_bias", True),
    ),
    rows=(
        renamed("gpt_neox.embed_in.weight", "model.embed_tokens.weight"),
        renamed("embed_out.weight", "lm_head.weight"),
        *linear("gpt_neox.final_layer_norm", "model.norm"),
        *linears(BLOCK, LAYER, "input_layernorm", "post_attention_layernorm"),
        *fused_qkv(f"{BLOCK}.attention.query_key_value", SplitGroups()),
        *linear(f"{BLOCK}.attention.dense", f"{LAYER}.self_attn.o_proj"),
        *linears(f"{BLOCK}.mlp", f"{LAYER}.mlp", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h"),
    ),
    dropped=masks(f"{BLOCK}.attention"),
    base_prefix="gpt_neox.",
    reordered=ONE_PRODUCT,
)
