"""dots.llm1: Qwen3's attention and DeepSeek-V3's experts (rednote-hilab 2025)."""

from ..config_rows import Fixed, Inert, Pair
from ..family import Family
from .shared.experts import BALANCED_BLOCK, GROUPED_EXPERTS, ROUTED_AS, sparse_layers
from .shared.fields import ATTENTION_BIAS, SIZES_HEAD_DIM_UNLISTED
from .shared.layer_kinds import LISTED_WINDOW
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, QK_NORM

FAMILY = Family(
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    kind="moe",
    config_rows=(
        *SIZES_HEAD_DIM_UNLISTED,
        ATTENTION_BIAS,
        Pair("rms_norm_eps", "norm_eps"),
        LISTED_WINDOW,
        Inert("max_window_layers", "what layer_types is made from where it is not given"),
        *GROUPED_EXPERTS,
        sparse_layers("first_k_dense_replace"),
        Fixed("qk_norm", "head"),
        *ROUTED_AS,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *BALANCED_BLOCK),
)
