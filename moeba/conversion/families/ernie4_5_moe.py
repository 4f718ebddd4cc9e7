"""ERNIE 4.5 MoE: ERNIE's block with experts in every n-th layer of a range, chosen with a bias (Baidu 2025)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Pair, Stated
from ..family import Family
from ..rows import Dropped, Reshape, renamed, same
from .deepseek import MORE_TOKENS, NO_FURTHER_LAYERS
from .ernie4_5 import FAMILY as DENSE
from .shared_fields import (
    ROUTER_LOSS,
    ROUTER_PARAM_DTYPE,
    UNLISTED_HEAD_DIM,
    shared_experts_by_count,
    without,
)
from .shared_tensors import LAYER, ROUTED_EXPERTS, shared_expert

SPAN = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
BIASES = ("attention_bias", "attention_output_bias", "mlp_bias", "lm_head_bias")


def _in_span(layer: int, first: int, last: int, interval: int) -> bool:
    return first <= layer <= last and (layer + 1) % interval == 0


def _layer_kinds(native: Any) -> dict[str, Any]:
    span = [native[name] for name in SPAN]
    kinds = ["sparse" if _in_span(i, *span) else "dense" for i in range(native["num_hidden_layers"])]
    return {"mlp_layer_types": kinds, "num_experts": native["moe_num_experts"] if "sparse" in kinds else 0}


def _layer_kinds_back(config: MoebaConfig) -> dict[str, Any]:
    layers, sparse = range(config.num_hidden_layers), config.sparse_layers
    span = (min(sparse), max(sparse)) if sparse else (len(layers), len(layers))
    fits = (n for n in range(1, len(layers) + 1) if [i for i in layers if _in_span(i, *span, n)] == sparse)
    return {**dict(zip(SPAN, (*span, next(fits, 1)), strict=True)), "moe_num_experts": config.num_experts}


FAMILY = Family(
    model_type="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    kind="moe",
    config_rows=(
        *without(DENSE.config_rows, "head_dim", "use_bias"),
        UNLISTED_HEAD_DIM,
        *ROUTER_LOSS,
        Pair("moe_k", "num_experts_per_tok"),
        Pair("moe_norm_min", "norm_topk_min"),
        Computed((*SPAN, "moe_num_experts"), _layer_kinds, _layer_kinds_back),
        shared_experts_by_count("moe_intermediate_size", "moe_num_shared_experts"),
        Computed(
            ("use_bias",),
            lambda native: dict.fromkeys(BIASES, bool(native["use_bias"])),
            lambda config: {"use_bias": config.attention_bias},
        ),
        Fixed("router_selection_bias", True),
        ROUTER_PARAM_DTYPE,
        Fixed("router_matmul_dtype", "float32"),
        Stated("moe_gate", "topk", "the authors' code chooses by it"),
        Stated("moe_use_aux_free", True, "the authors' code adds the bias of the choice where it says so"),
        NO_FURTHER_LAYERS,
    ),
    rows=(
        *DENSE.rows,
        *same("lm_head.bias", f"{LAYER}.mlp.gate.weight"),
        renamed(
            f"{LAYER}.mlp.moe_statics.e_score_correction_bias",
            f"{LAYER}.mlp.gate.e_score_correction_bias",
            Reshape(ours=lambda config: (config.num_experts,), theirs=lambda config: (1, config.num_experts)),
        ),
        *shared_expert("shared_experts"),
        *ROUTED_EXPERTS,
    ),
    dropped=(Dropped("model.mtp{rest}", f"of a block beside the model: it {MORE_TOKENS}"),),
    reordered=DENSE.reordered,
)
