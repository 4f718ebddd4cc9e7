"""Mellum 2: Qwen3-MoE's block with sliding layers and a rope for each kind of layer (JetBrains 2026)."""

from ..config_rows import Fixed, Inert, Pair, pairs
from ..family import Family
from ..rows import Dropped
from .shared.experts import MIXED_BLOCK, MORE_TOKENS, PREDICTION_COUNT, ROUTER_LOSS
from .shared.fields import ATTENTION_BIAS, SIZES, without
from .shared.layer_kinds import LISTED_WINDOW, listed_kinds
from .shared.rope import rope_by_kind
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, QK_NORM

FAMILY = Family(
    model_type="mellum",
    architecture="MellumForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "rope_parameters"),
        *pairs("moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
        *ROUTER_LOSS,
        Pair("rms_norm_eps", "norm_eps"),
        Fixed("qk_norm", "head"),
        ATTENTION_BIAS,
        LISTED_WINDOW,
        rope_by_kind(),
        listed_kinds("num_experts"),
        PREDICTION_COUNT,
        Inert("mtp_layer_types", f"of layers beside the model, each of which {MORE_TOKENS}"),
        Inert("mtp_mlp_layer_types", f"of layers beside the model, each of which {MORE_TOKENS}"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *MIXED_BLOCK),
    dropped=(Dropped("mtp.{rest}", f"of a layer beside the model: it {MORE_TOKENS}"),),
)
