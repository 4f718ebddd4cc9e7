"""BioGPT: learned positions with an offset, scaled embeddings (Luo et al. 2022)."""

from typing import Any

from ..config_rows import Computed, ConfigRow, Fixed, Inert, Only, Pair, pairs
from ..family import Family
from ..rows import Row, linear, renamed
from .shared_fields import CLASSIC
from .shared_tensors import LAYER, QKV, linears


def dropout_everywhere(name: str) -> ConfigRow:
    """One rate after the embeddings and after each branch."""
    return Computed(
        (name,),
        lambda native: dict.fromkeys(("hidden_dropout", "embedding_dropout"), native[name]),
        lambda config: {name: config.hidden_dropout},
    )


def scaled_embeddings(width: str) -> ConfigRow:
    """A switch for the root of the stream's width as a factor on the embeddings."""

    def ours_from(native: Any) -> dict[str, Any]:
        return {"embedding_multiplier": native[width] ** 0.5 if native["scale_embedding"] else 1.0}

    return Computed(
        ("scale_embedding",),
        ours_from,
        lambda config: {"scale_embedding": config.embedding_multiplier != 1.0},
    )


# Of both descendants of fairseq's decoder.
NO_RANDOM_CUTS: tuple[ConfigRow, ...] = (
    Only("layerdrop", 0.0, "training skips no layers"),
    Only("activation_dropout", 0.0, "there is no dropout inside feed-forwards"),
)


def block(theirs: str) -> tuple[Row, ...]:
    """A layer's tensors."""
    return (
        *linears(theirs, LAYER, input_layernorm="self_attn_layer_norm", post_attention_layernorm="final_layer_norm"),
        *linears(f"{theirs}.self_attn", f"{LAYER}.self_attn", *QKV, o_proj="out_proj"),
        *linears(theirs, f"{LAYER}.mlp", up_proj="fc1", down_proj="fc2"),
    )  # fmt: skip


FAMILY = Family(
    model_type="biogpt",
    architecture="BioGptForCausalLM",
    kind="dense",
    config_rows=(
        *pairs("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
        *pairs("max_position_embeddings"),
        Pair("attention_probs_dropout_prob", "attention_dropout"),
        dropout_everywhere("hidden_dropout_prob"),
        scaled_embeddings("hidden_size"),
        *NO_RANDOM_CUTS,
        Inert("layer_norm_eps", "the stock norms always have 1e-5"),
        Fixed("norm_eps", 1e-5),
        Fixed("position_embedding_type", "learned"),
        Fixed("position_offset", 2),
        *CLASSIC,
    ),
    rows=(
        renamed("biogpt.embed_tokens.weight", "model.embed_tokens.weight"),
        renamed("biogpt.embed_positions.weight", "model.embed_positions.weight"),
        renamed("output_projection.weight", "lm_head.weight"),
        *linear("biogpt.layer_norm", "model.norm"),
        *block("biogpt.layers.{layer}"),
    ),
    base_prefix="biogpt.",
)
