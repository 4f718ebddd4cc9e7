"""GraniteMoE with sliding windows: Granite's sliding layers and sinks around GraniteMoEShared's experts (IBM 2025)."""

from ..family import Family
from ..rows import renamed, same
from .shared.fields import without
from .shared.granite_blocks import GRANITE_EXPERTS, MOE, SHARED_MLP, SHARED_MLP_WIDTH, SLIDING_FIELDS
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, FUSED_ACTIVATION, LAYER, PRE_NORMS

FAMILY = Family(
    model_type="granitemoe_swa",
    architecture="GraniteMoeSWAForCausalLM",
    kind="moe",
    config_rows=(
        *without(SLIDING_FIELDS, "mlp_bias", "intermediate_size"),
        *GRANITE_EXPERTS,
        SHARED_MLP_WIDTH,
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *PRE_NORMS,
        *same(f"{LAYER}.self_attn.sinks"),
        renamed(f"{MOE}.router.weight", f"{LAYER}.mlp.gate.weight"),
        renamed(f"{MOE}.experts.gate_up_proj", f"{LAYER}.mlp.experts.gate_up_proj"),
        renamed(f"{MOE}.experts.down_proj", f"{LAYER}.mlp.experts.down_proj"),
        *SHARED_MLP,
    ),
    reordered=FUSED_ACTIVATION,
)
