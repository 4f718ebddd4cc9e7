"""ERNIE 4.5 MoE: ERNIE's block with experts in every n-th layer of a range, chosen with a bias (Baidu 2025)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Pair, Stated
from ..family import Family
from ..rows import Dropped, Reshape, renamed, same
from .shared.experts import (
    MORE_TOKENS,
    NO_FURTHER_LAYERS,
    ROUTER_LOSS,
    ROUTER_PARAM_DTYPE,
    shared_experts_by_count,
)
from .shared.fields import SIZES_HEAD_DIM_UNLISTED, every_bias, without
from .shared.tensors import INTERLEAVED, INTERLEAVED_LLAMA_TENSORS, LAYER, ROUTER_AND_EXPERTS, shared_expert

SPAN = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")


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
        *without(SIZES_HEAD_DIM_UNLISTED, "attention_dropout"),
        Pair("rms_norm_eps", "norm_eps"),
        Fixed("rotary_precision", "float32"),
        *ROUTER_LOSS,
        Pair("moe_k", "num_experts_per_tok"),
        Pair("moe_norm_min", "norm_topk_min"),
        Computed((*SPAN, "moe_num_experts"), _layer_kinds, _layer_kinds_back),
        shared_experts_by_count("moe_intermediate_size", "moe_num_shared_experts"),
        every_bias("use_bias", "lm_head_bias"),
        Fixed("router_selection_bias", True),
        ROUTER_PARAM_DTYPE,
        Fixed("router_matmul_dtype", "float32"),
        Stated("moe_gate", "topk", "the authors' code chooses by it"),
        Stated("moe_use_aux_free", True, "the authors' code adds the bias of the choice where it says so"),
        NO_FURTHER_LAYERS,
    ),
    rows=(
        *INTERLEAVED_LLAMA_TENSORS,
        *same("lm_head.bias"),
        renamed(
            f"{LAYER}.mlp.moe_statics.e_score_correction_bias",
            f"{LAYER}.mlp.gate.e_score_correction_bias",
            Reshape(ours=lambda config: (config.num_experts,), theirs=lambda config: (1, config.num_experts)),
        ),
        *ROUTER_AND_EXPERTS,
        *shared_expert("shared_experts"),
    ),
    dropped=(Dropped("model.mtp{rest}", f"of a block beside the model: it {MORE_TOKENS}"),),
    reordered=INTERLEAVED,
)
