"""BLOOM: alibi, a norm after the embeddings, queries, keys and values fused head by head (BigScience 2022)."""

from typing import Any

from ..config_rows import Computed, Fixed, Inert, Pair, pairs
from ..family import Family
from ..rows import linear
from .shared.fields import CLASSIC, TRAINED_PADDING, fourfold_width, switch
from .shared.gpt_blocks import BLOOM_NORMS, BLOOM_TENSORS


def _exactness(native: Any) -> dict[str, Any]:
    if native["pretraining_tp"] > 1 and native["slow_but_exact"]:
        raise ValueError(
            f"pretraining_tp={native['pretraining_tp']} with slow_but_exact=True is not supported: the stock code "
            "leaves out the biases of its output projections then"
        )
    return {}


FAMILY = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    kind="dense",
    rounds_otherwise=True,
    config_rows=(
        *pairs("hidden_dropout", "attention_dropout"),
        Pair("n_layer", "num_hidden_layers"),
        Pair("n_head", "num_attention_heads"),
        Pair("layer_norm_epsilon", "norm_eps"),
        fourfold_width("hidden_size"),
        switch(
            "apply_residual_connection_post_layernorm",
            "block_order",
            on="pre_norm_normed_residual",
            off="pre_norm",
        ),
        Computed(("pretraining_tp", "slow_but_exact"), _exactness, lambda config: {}),
        Inert("n_embed", "an older name of hidden_size, which the stock config takes over"),
        Fixed("position_embedding_type", "alibi"),
        Fixed("embedding_norm", True),
        Fixed("hidden_act", "gelu_fast"),
        *CLASSIC,
        TRAINED_PADDING,
    ),
    rows=(*BLOOM_TENSORS, *BLOOM_NORMS, *linear("transformer.word_embeddings_layernorm", "model.embed_norm")),
    base_prefix="transformer.",
    reordered="stock adds distances within the product of queries and keys",
)
