"""GraniteMoE with sliding windows: Granite's sliding layers and sinks around GraniteMoEShared's experts (IBM 2025)."""

from ..family import Family
from ..rows import renamed, same
from .granite_swa import FAMILY as GRANITE_SWA
from .granitemoe import EXPERTS_CONFIG, MOE
from .granitemoeshared import SHARED_CONFIG, SHARED_ROWS
from .shared_fields import without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, FUSED_ACTIVATION, LAYER, PRE_NORMS

FAMILY = Family(
    model_type="granitemoe_swa",
    architecture="GraniteMoeSWAForCausalLM",
    kind="moe",
    config_rows=(
        *without(GRANITE_SWA.config_rows, "mlp_bias", "intermediate_size"),
        *EXPERTS_CONFIG,
        SHARED_CONFIG,
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *PRE_NORMS,
        *same(f"{LAYER}.self_attn.sinks"),
        renamed(f"{MOE}.router.weight", f"{LAYER}.mlp.gate.weight"),
        renamed(f"{MOE}.experts.gate_up_proj", f"{LAYER}.mlp.experts.gate_up_proj"),
        renamed(f"{MOE}.experts.down_proj", f"{LAYER}.mlp.experts.down_proj"),
        *SHARED_ROWS,
    ),
    reordered=FUSED_ACTIVATION,
)
