"""Mellum 2: Qwen3-MoE's block with sliding layers and a rope for each kind of layer (JetBrains 2026)."""

from ..config_rows import Inert
from ..family import Family
from ..rows import Dropped
from .deepseek import MORE_TOKENS, PREDICTION_COUNT
from .qwen3_moe import FAMILY as QWEN3_MOE
from .shared_fields import ATTENTION_BIAS, LISTED_WINDOW, listed_kinds, rope_by_kind, without

OTHERWISE = (
    "attention_bias", "rope_parameters", "sliding_window", "use_sliding_window", "num_experts", "mlp_only_layers",
    "decoder_sparse_step",
)  # fmt: skip

FAMILY = Family(
    model_type="mellum",
    architecture="MellumForCausalLM",
    kind="moe",
    config_rows=(
        *without(QWEN3_MOE.config_rows, *OTHERWISE),
        ATTENTION_BIAS,
        LISTED_WINDOW,
        rope_by_kind(),
        listed_kinds("num_experts"),
        PREDICTION_COUNT,
        Inert("mtp_layer_types", f"of layers beside the model, each of which {MORE_TOKENS}"),
        Inert("mtp_mlp_layer_types", f"of layers beside the model, each of which {MORE_TOKENS}"),
    ),
    rows=QWEN3_MOE.rows,
    dropped=(Dropped("mtp.{rest}", f"of a layer beside the model: it {MORE_TOKENS}"),),
)
