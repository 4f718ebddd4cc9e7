"""Mixtral: Llama's block with eight experts, two a token (Jiang et al. 2024)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from ..rows import renamed
from .shared_fields import ROUTER_LOSS, SIZES, UNIFORM_WINDOW
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, PRE_NORMS, per_expert

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    kind="moe",
    config_rows=(
        *(row for row in SIZES if row.theirs != ("intermediate_size",)),
        *pairs("num_experts_per_tok", "router_jitter_noise"),
        *ROUTER_LOSS,
        Pair("intermediate_size", "moe_intermediate_size"),
        Pair("num_local_experts", "num_experts"),
        Pair("rms_norm_eps", "norm_eps"),
        UNIFORM_WINDOW,
        Fixed("norm_topk_prob", True),
        Fixed("router_weight_dtype", "float32"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *PRE_NORMS,
        renamed(f"{LAYER}.block_sparse_moe.gate.weight", f"{LAYER}.mlp.gate.weight"),
        *per_expert("block_sparse_moe", gate="w1", up="w3", down="w2"),
    ),
)
