"""GraniteMoE: Granite with experts; the best logits share the weight (IBM 2024)."""

from ..config_rows import ConfigRow, Fixed, Pair, pairs
from ..family import Family
from ..rows import renamed
from .granite import BIASES_AND_SCALES
from .shared_fields import ROUTER_LOSS, SIZES, UNLISTED_HEAD_DIM, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, PRE_NORMS

EXPERTS_CONFIG: tuple[ConfigRow, ...] = (
    *pairs("num_experts_per_tok"),
    *ROUTER_LOSS,
    Pair("intermediate_size", "moe_intermediate_size"),
    Pair("num_local_experts", "num_experts"),
    Fixed("router_type", "topk_softmax"),
)
CONFIG_ROWS: tuple[ConfigRow, ...] = (
    *without(SIZES, "head_dim", "intermediate_size"),
    UNLISTED_HEAD_DIM,
    Pair("rms_norm_eps", "norm_eps"),
    *without(BIASES_AND_SCALES, "mlp_bias"),
    *EXPERTS_CONFIG,
)
MOE = f"{LAYER}.block_sparse_moe"
ROWS = (
    *EMBEDDINGS_AND_HEAD,
    *ATTENTION,
    *PRE_NORMS,
    renamed(f"{MOE}.router.layer.weight", f"{LAYER}.mlp.gate.weight"),
    renamed(f"{MOE}.input_linear.weight", f"{LAYER}.mlp.experts.gate_up_proj"),
    renamed(f"{MOE}.output_linear.weight", f"{LAYER}.mlp.experts.down_proj"),
)

FAMILY = Family(
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    kind="moe",
    config_rows=CONFIG_ROWS,
    rows=ROWS,
)
