"""Command R: both branches read one layer norm, and rope turns neighbouring channels (Cohere 2024)."""

from __future__ import annotations

from ..config_rows import Computed, ConfigRow, Fixed, Pair
from ..family import Family
from ..rows import PairsToHalves, Row, renamed, same
from .shared_fields import ATTENTION_BIAS, SIZES, UNLISTED_HEAD_DIM, scaled_logits, without
from .shared_tensors import EMBEDDINGS_AND_HEAD, GATED_MLP, INTERLEAVED_ATTENTION, LAYER

CONFIG_ROWS: tuple[ConfigRow, ...] = (
    *without(SIZES, "head_dim"),
    UNLISTED_HEAD_DIM,
    ATTENTION_BIAS,
    scaled_logits("logit_scale", "multiply"),
    Pair("layer_norm_eps", "norm_eps"),
    Fixed("norm_type", "layernorm_float32"),
    Fixed("block_order", "parallel_stream_first"),
    Fixed("rotary_precision", "float32_product"),
)

ROWS: tuple[Row, ...] = (
    *EMBEDDINGS_AND_HEAD,
    *INTERLEAVED_ATTENTION,
    *GATED_MLP,
    *same(f"{LAYER}.input_layernorm.weight"),
)

REORDERED = "the channels of a head that rope turns together lie side by side in the stock model's scores"

FAMILY = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    kind="dense",
    config_rows=(
        *CONFIG_ROWS,
        Computed(
            ("use_qk_norm",),
            lambda native: {"qk_norm": "per_head" if native["use_qk_norm"] else "none"},
            lambda config: {"use_qk_norm": config.qk_norm == "per_head"},
        ),
    ),
    rows=(
        *ROWS,
        *(renamed(f"{LAYER}.self_attn.{norm}.weight", f"{LAYER}.self_attn.{norm}.weight", PairsToHalves(last=True))
          for norm in ("q_norm", "k_norm")),
    ),
    reordered=REORDERED,
)  # fmt: skip
