"""Solar Open: Llama's attention and DeepSeek-V3's experts in every layer (Upstage 2025)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from .shared.experts import BALANCED_BLOCK, GROUPED_EXPERTS, ROUTED_AS, sparse_layers
from .shared.fields import SIZES, without
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD

FAMILY = Family(
    model_type="solar_open",
    architecture="SolarOpenForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "intermediate_size"),
        *pairs("attention_bias"),
        Fixed("attention_output_bias", False),
        Pair("rms_norm_eps", "norm_eps"),
        *GROUPED_EXPERTS,
        sparse_layers(None),
        *ROUTED_AS,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *BALANCED_BLOCK),
)
