"""XGLM: fixed waves for positions, scaled embeddings (Lin et al. 2022)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Inert, Only, Pair, pairs
from ..family import Family
from ..rows import Dropped, linear, renamed
from .shared.fields import CLASSIC, dropout_everywhere, scaled_embeddings
from .shared.gpt_blocks import NO_RANDOM_CUTS, fairseq_branches, fairseq_norms
from .shared.tensors import LAYER, PADDED_ROWS

OFFSET = 2


def _table(native: Any) -> dict[str, Any]:
    padding = native["pad_token_id"]
    if padding is not None and not 0 <= padding < OFFSET:
        raise ValueError(
            f"pad_token_id={padding} is supported below {OFFSET} only: the stock table of positions has zeros there"
        )
    return {"max_position_embeddings": native["max_position_embeddings"], "position_offset": OFFSET}


def _table_back(config: MoebaConfig) -> dict[str, Any]:
    return {"max_position_embeddings": config.max_position_embeddings}


FAMILY = Family(
    model_type="xglm",
    architecture="XGLMForCausalLM",
    kind="dense",
    rounds_otherwise=True,
    config_rows=(
        *pairs("attention_dropout"),
        Pair("d_model", "hidden_size"),
        Pair("ffn_dim", "intermediate_size"),
        Pair("num_layers", "num_hidden_layers"),
        Pair("attention_heads", "num_attention_heads"),
        Pair("activation_function", "hidden_act"),
        Pair("init_std", "initializer_range"),
        Computed(("max_position_embeddings",), _table, _table_back),
        dropout_everywhere("dropout"),
        scaled_embeddings("scale_embedding", width="d_model"),
        *NO_RANDOM_CUTS,
        Inert("decoder_start_token_id", "the first token that an encoder-decoder writes"),
        Only("add_cross_attention", False, "there is no encoder to attend to"),
        Fixed("norm_eps", 1e-5),
        Fixed("position_embedding_type", "sinusoidal_fairseq"),
        *CLASSIC,
    ),
    rows=(
        renamed("model.embed_tokens.weight", "model.embed_tokens.weight"),
        renamed("lm_head.weight", "lm_head.weight"),
        *linear("model.layer_norm", "model.norm"),
        *fairseq_norms(LAYER),
        *fairseq_branches(LAYER),
    ),
    dropped=(Dropped("model.embed_positions.weights", "fixed waves, computed"),),
    reordered="stock scales the queries, not their products with the keys; " + PADDED_ROWS,
)
