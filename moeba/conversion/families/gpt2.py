"""GPT-2: learned positions, layer norms, fused and transposed projections (Radford et al. 2019)."""

from typing import Any

from ..config_rows import Computed, Fixed, Inert, Only, Pair
from ..family import Family
from ..rows import Dropped, Row, Split, Transpose, linear, renamed
from .common import LAYER

BLOCK = "transformer.h.{layer}"


def _fused_qkv(part: str) -> Row:
    ours = tuple(f"{LAYER}.self_attn.{name}.{part}" for name in ("q_proj", "k_proj", "v_proj"))
    split = Split(lambda config: [config.hidden_size] * 3)
    return Row((f"{BLOCK}.attn.c_attn.{part}",), ours, (Transpose(), split))


def _feed_forward_width(native: Any) -> dict[str, Any]:
    return {"intermediate_size": native["n_inner"] or 4 * native["n_embd"]}


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    kind="dense",
    config_rows=(
        Pair("n_embd", "hidden_size"),
        Pair("n_layer", "num_hidden_layers"),
        Pair("n_head", "num_attention_heads"),
        Pair("n_positions", "max_position_embeddings"),
        Pair("activation_function", "hidden_act"),
        Pair("layer_norm_epsilon", "norm_eps"),
        Pair("resid_pdrop", "hidden_dropout"),
        Pair("embd_pdrop", "embedding_dropout"),
        Pair("attn_pdrop", "attention_dropout"),
        Computed(("n_inner",), _feed_forward_width, lambda config: {"n_inner": config.intermediate_size}),
        Computed(
            ("scale_attn_weights",),
            lambda native: {"attention_multiplier": None if native["scale_attn_weights"] else 1.0},
            lambda config: {"scale_attn_weights": config.attention_multiplier != 1.0},
        ),
        Only("scale_attn_by_inverse_layer_idx", False, "attention has one scale for all layers"),
        Inert("reorder_and_upcast_attn", "another order of the same product, in float32"),
        Only("add_cross_attention", False, "there is no encoder to attend to"),
        *(Inert(f"summary_{name}", "of the double-heads model only") for name in
          ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")),
        Fixed("norm_type", "layernorm"),
        Fixed("position_embedding_type", "learned"),
        Fixed("feed_forward_type", "mlp"),
        Fixed("attention_bias", True),
        Fixed("mlp_bias", True),
    ),
    rows=(
        renamed("transformer.wte.weight", "model.embed_tokens.weight"),
        renamed("transformer.wpe.weight", "model.embed_positions.weight"),
        renamed("lm_head.weight", "lm_head.weight"),
        *linear("transformer.ln_f", "model.norm"),
        *linear(f"{BLOCK}.ln_1", f"{LAYER}.input_layernorm"),
        *linear(f"{BLOCK}.ln_2", f"{LAYER}.post_attention_layernorm"),
        _fused_qkv("weight"),
        _fused_qkv("bias"),
        *linear(f"{BLOCK}.attn.c_proj", f"{LAYER}.self_attn.o_proj", Transpose()),
        *linear(f"{BLOCK}.mlp.c_fc", f"{LAYER}.mlp.up_proj", Transpose()),
        *linear(f"{BLOCK}.mlp.c_proj", f"{LAYER}.mlp.down_proj", Transpose()),
    ),
    dropped=(
        Dropped(f"{BLOCK}.attn.bias", "causal mask"),
        Dropped(f"{BLOCK}.attn.masked_bias", "value of masked scores"),
    ),
    base_prefix="transformer.",
    notes="Equal to rounding, not bit by bit: matrices are stored transposed, so stock sums run in another order.",
)  # fmt: skip
