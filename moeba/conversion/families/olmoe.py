"""OLMoE: Llama's block with many small experts and a norm over all query and key heads (Muennighoff et al. 2024)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from ..rows import same
from .shared_fields import ATTENTION_BIAS, ROUTER_LOSS, SIZES, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, PRE_NORMS, QK_NORM, ROUTED_EXPERTS

EXPERTS_CONFIG = (
    *pairs("num_experts", "num_experts_per_tok", "norm_topk_prob"),
    *ROUTER_LOSS,
    Pair("intermediate_size", "moe_intermediate_size"),
)
EXPERTS_AND_ATTENTION = (
    *EMBEDDINGS_AND_HEAD,
    *ATTENTION,
    *QK_NORM,
    *same(f"{LAYER}.mlp.gate.weight"),
    *ROUTED_EXPERTS,
)

FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    kind="moe",
    config_rows=(
        # The norm over all heads ties a head's width to the hidden size.
        *without(SIZES, "head_dim", "intermediate_size"),
        *EXPERTS_CONFIG,
        *pairs("clip_qkv"),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        Fixed("qk_norm", "full"),
    ),
    rows=(*EXPERTS_AND_ATTENTION, *PRE_NORMS),
)
