"""OLMoE: Llama's block with many small experts and a norm over all query and key heads (Muennighoff et al. 2024)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from .shared.experts import OLMOE_EXPERTS
from .shared.fields import ATTENTION_BIAS, SIZES, without
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, PRE_NORMS, QK_NORM, ROUTER_AND_EXPERTS

FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    kind="moe",
    config_rows=(
        # The norm over all heads ties a head's width to the hidden size.
        *without(SIZES, "head_dim", "intermediate_size"),
        *OLMOE_EXPERTS,
        *pairs("clip_qkv"),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        Fixed("qk_norm", "full"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *PRE_NORMS, *ROUTER_AND_EXPERTS),
)
