"""OLMo 2: norms of each branch's output and of whole queries and keys (OLMo Team 2024)."""

from __future__ import annotations

from ..config_rows import ConfigRow, Fixed, Pair
from ..family import Family
from ..rows import same
from .shared_fields import ATTENTION_BIAS, SIZES, UNLISTED_HEAD_DIM, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, LAYER, QK_NORM

CONFIG_ROWS: tuple[ConfigRow, ...] = (
    *without(SIZES, "head_dim"),
    UNLISTED_HEAD_DIM,
    ATTENTION_BIAS,
    Pair("rms_norm_eps", "norm_eps"),
    Fixed("norm_type", "rmsnorm_float32"),
    Fixed("block_order", "output_norm"),
    Fixed("qk_norm", "full"),
    Fixed("rotary_precision", "float32"),
)

ROWS = (
    *EMBEDDINGS_AND_HEAD,
    *ATTENTION,
    *QK_NORM,
    *GATED_MLP,
    *same(f"{LAYER}.post_attention_layernorm.weight", f"{LAYER}.post_feedforward_layernorm.weight"),
)

FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    kind="dense",
    config_rows=CONFIG_ROWS,
    rows=ROWS,
)
