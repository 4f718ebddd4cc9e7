"""BioGPT: learned positions with an offset, scaled embeddings (Luo et al. 2022)."""

from ..config_rows import Fixed, Inert, Pair, pairs
from ..family import Family
from ..rows import linear, renamed
from .shared.fields import CLASSIC, dropout_everywhere, scaled_embeddings
from .shared.gpt_blocks import NO_RANDOM_CUTS, fairseq_branches, fairseq_norms

FAMILY = Family(
    model_type="biogpt",
    architecture="BioGptForCausalLM",
    kind="dense",
    config_rows=(
        *pairs("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
        *pairs("max_position_embeddings"),
        Pair("attention_probs_dropout_prob", "attention_dropout"),
        dropout_everywhere("hidden_dropout_prob"),
        scaled_embeddings("scale_embedding"),
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
        *fairseq_norms("biogpt.layers.{layer}"),
        *fairseq_branches("biogpt.layers.{layer}"),
    ),
    base_prefix="biogpt.",
)
