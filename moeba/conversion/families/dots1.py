"""dots.llm1: Qwen3's attention and DeepSeek-V3's experts (rednote-hilab 2025)."""

from ..config_rows import Fixed, Inert, Pair
from ..family import Family
from .common import (
    ATTENTION,
    ATTENTION_BIAS,
    EMBEDDINGS_AND_HEAD,
    LISTED_WINDOW,
    QK_NORM,
    SIZES,
    UNLISTED_HEAD_DIM,
    without,
)
from .deepseek import (
    BLOCK,
    GROUPED_EXPERTS,
    LEFTOVERS,
    RESTATED,
    ROUTED_EXPERTS,
    SELECTION_BIAS,
    sparse_layers,
)

FAMILY = Family(
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "head_dim"),
        UNLISTED_HEAD_DIM,
        ATTENTION_BIAS,
        Pair("rms_norm_eps", "norm_eps"),
        LISTED_WINDOW,
        Inert("max_window_layers", "what layer_types is made from where it is not given"),
        *GROUPED_EXPERTS,
        sparse_layers("first_k_dense_replace"),
        Fixed("qk_norm", "head"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *BLOCK, *ROUTED_EXPERTS, *SELECTION_BIAS),
    leftovers=LEFTOVERS,
    restated=RESTATED,
)
