"""Qwen2: Llama's block with biases on queries, keys and values (Yang et al. 2024)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Pair
from ..family import Family
from .common import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS, SIZES, WINDOW_BY_LAYER


def _head_dim(native: Any) -> dict[str, Any]:
    # No field of the stock config, but its code reads it where a config.json has it.
    return {"head_dim": native["head_dim"] or native["hidden_size"] // native["num_attention_heads"]}


def _head_dim_back(config: MoebaConfig) -> dict[str, Any]:
    usual = config.hidden_size // config.num_attention_heads
    return {} if config.head_dim == usual else {"head_dim": config.head_dim}


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    kind="dense",
    config_rows=(
        *(row for row in SIZES if row.theirs != ("head_dim",)),
        Computed(("head_dim",), _head_dim, _head_dim_back),
        Pair("rms_norm_eps", "norm_eps"),
        WINDOW_BY_LAYER,
        Fixed("attention_bias", True),
        Fixed("attention_output_bias", False),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)
