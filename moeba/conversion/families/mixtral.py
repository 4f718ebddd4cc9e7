"""Mixtral: Llama's block with eight experts, two a token (Jiang et al. 2024)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from .shared.experts import BLOCK_SPARSE_MOE, LOCAL_EXPERTS, ROUTER_LOSS
from .shared.fields import SIZES, without
from .shared.layer_kinds import UNIFORM_WINDOW
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, PRE_NORMS

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "intermediate_size"),
        *pairs("num_experts_per_tok", "router_jitter_noise"),
        *ROUTER_LOSS,
        *LOCAL_EXPERTS,
        Pair("rms_norm_eps", "norm_eps"),
        UNIFORM_WINDOW,
        Fixed("norm_topk_prob", True),
        Fixed("router_weight_dtype", "float32"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *PRE_NORMS, *BLOCK_SPARSE_MOE),
)
