"""GPT-2: learned positions, layer norms, fused and transposed projections (Radford et al. 2019)."""

from typing import Any

from ..config_rows import Computed, ConfigRow, Fixed, Inert, Only, Pair, Stated, pairs
from ..family import Family
from ..rows import Dropped, Operation, Row, Split, Transpose, linear, renamed
from .shared_fields import CLASSIC, TRAINED_PADDING
from .shared_tensors import LAYER, fused_qkv, linears

BLOCK = "transformer.h.{layer}"


def _feed_forward_width(native: Any) -> dict[str, Any]:
    return {"intermediate_size": native["n_inner"] or 4 * native["n_embd"]}


# What the configs of GPT, GPT-2, CTRL and GPT-BigCode have in common.
SIZES: tuple[ConfigRow, ...] = (
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
FIELDS: tuple[ConfigRow, ...] = (
    *SIZES,
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


def tensors(cut: Operation, *stored: Operation) -> tuple[Row, ...]:
    """Every tensor: how the fused projection is cut, and how matrices are stored."""
    return (
        renamed("transformer.wte.weight", "model.embed_tokens.weight"),
        renamed("transformer.wpe.weight", "model.embed_positions.weight"),
        renamed("lm_head.weight", "lm_head.weight"),
        *linear("transformer.ln_f", "model.norm"),
        *linears(BLOCK, LAYER, input_layernorm="ln_1", post_attention_layernorm="ln_2"),
        *fused_qkv(f"{BLOCK}.attn.c_attn", *stored, cut),
        *linear(f"{BLOCK}.attn.c_proj", f"{LAYER}.self_attn.o_proj", *stored),
        *linear(f"{BLOCK}.mlp.c_fc", f"{LAYER}.mlp.up_proj", *stored),
        *linear(f"{BLOCK}.mlp.c_proj", f"{LAYER}.mlp.down_proj", *stored),
    )


MASKS = (
    Dropped(f"{BLOCK}.attn.bias", "causal mask"),
    Dropped(f"{BLOCK}.attn.masked_bias", "value of masked scores"),
)

FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    kind="dense",
    config_rows=(
        *FIELDS,
        *SUMMARY,
        *pairs("scale_attn_by_inverse_layer_idx"),
        Inert("reorder_and_upcast_attn", "another order of the same product, in float32"),
        Fixed("position_embedding_type", "learned"),
        Stated(
            "n_ctx",
            lambda config: config.max_position_embeddings,
            "llama.cpp's converter fails where it is not said",
            required=False,
        ),
    ),
    rows=tensors(Split(lambda config: [config.hidden_size] * 3), Transpose()),
    dropped=MASKS,
    base_prefix="transformer.",
    aliases=("gpt-sw3",),
    reordered="stock multiplies by matrices that lie transposed, with queries, keys and values in one product",
)
