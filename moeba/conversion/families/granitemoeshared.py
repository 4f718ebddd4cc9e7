"""GraniteMoEShared: GraniteMoE with an expert that every token visits (IBM 2025)."""

from ..config_rows import Pair
from ..family import Family
from ..rows import Row, Split, renamed
from .granitemoe import CONFIG_ROWS, ROWS
from .shared_tensors import FUSED_ACTIVATION, LAYER

SHARED_CONFIG = Pair("shared_intermediate_size", "shared_expert_intermediate_size")
SHARED_ROWS = (
    Row(
        (f"{LAYER}.shared_mlp.input_linear.weight",),
        tuple(f"{LAYER}.mlp.shared_expert.{part}.weight" for part in ("gate_proj", "up_proj")),
        (Split(lambda config: [config.shared_expert_intermediate_size] * 2),),
    ),
    renamed(f"{LAYER}.shared_mlp.output_linear.weight", f"{LAYER}.mlp.shared_expert.down_proj.weight"),
)

FAMILY = Family(
    model_type="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    kind="moe",
    config_rows=(*CONFIG_ROWS, SHARED_CONFIG),
    rows=(*ROWS, *SHARED_ROWS),
    reordered=FUSED_ACTIVATION,
)
