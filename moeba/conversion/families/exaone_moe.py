"""K-EXAONE: Qwen3's attention, of which only sliding layers rotate, and DeepSeek-V3's experts (LG 2025)."""

from ..config_rows import Fixed, Inert, Pair
from ..family import Family
from ..rows import Dropped, renamed
from .shared.experts import (
    GROUPED_EXPERTS,
    MORE_TOKENS,
    NO_FURTHER_LAYERS,
    ROUTED_AS,
    SHARING_BLOCK,
    sparse_layers,
)
from .shared.fields import SIZES_HEAD_DIM_UNLISTED
from .shared.layer_kinds import LISTED_WINDOW, ROTATED_WHERE_SLIDING
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, QK_NORM

FAMILY = Family(
    model_type="exaone_moe",
    architecture="ExaoneMoeForCausalLM",
    kind="moe",
    config_rows=(
        *SIZES_HEAD_DIM_UNLISTED,
        Pair("rms_norm_eps", "norm_eps"),
        LISTED_WINDOW,
        ROTATED_WHERE_SLIDING,
        Inert("sliding_window_pattern", "what layer_types is made from where it is not given"),
        *GROUPED_EXPERTS,
        sparse_layers("mlp_layer_types", "num_experts", "num_shared_experts"),
        Inert("first_k_dense_replace", "what mlp_layer_types is made from where it is not given"),
        Fixed("qk_norm", "head"),
        *ROUTED_AS,
        NO_FURTHER_LAYERS,
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *QK_NORM,
        *SHARING_BLOCK,
        renamed(f"{LAYER}.mlp.e_score_correction_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
    ),
    dropped=(Dropped("mtp{rest}", f"of a layer beside the model: it {MORE_TOKENS}"),),
)
