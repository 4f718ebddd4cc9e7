"""Qwen3-MoE: Qwen3's block with many small experts; some layers may stay dense (Yang et al. 2025)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from ..rows import same
from .shared_fields import ROUTER_LOSS, SIZES
from .shared_tensors import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    LAYER,
    PRE_NORMS,
    QK_NORM,
    ROUTED_EXPERTS,
)


def _layer_kinds(native: Any) -> dict[str, Any]:
    dense, step = set(native["mlp_only_layers"]), native["decoder_sparse_step"]
    layers, experts = range(native["num_hidden_layers"]), native["num_experts"]
    kinds = ["sparse" if experts and i not in dense and (i + 1) % step == 0 else "dense" for i in layers]
    # Experts that no layer has would contradict `mlp_layer_types`.
    return {"mlp_layer_types": kinds, "num_experts": experts if "sparse" in kinds else 0}


def _layer_kinds_back(config: MoebaConfig) -> dict[str, Any]:
    dense = [i for i, kind in enumerate(config.mlp_layer_types) if kind == "dense"]
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1, "num_experts": config.num_experts}


LAYER_KINDS = Computed(
    ("mlp_only_layers", "decoder_sparse_step", "num_experts"), _layer_kinds, _layer_kinds_back
)


def _window(native: Any) -> dict[str, Any]:
    window = native["sliding_window"] if native["use_sliding_window"] else None
    kind = "full_attention" if window is None else "sliding_attention"
    return {"sliding_window": window, "layer_types": [kind] * native["num_hidden_layers"]}


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    kind="moe",
    config_rows=(
        *SIZES,
        *pairs("attention_bias", "moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
        *ROUTER_LOSS,
        Pair("rms_norm_eps", "norm_eps"),
        LAYER_KINDS,
        Computed(
            ("use_sliding_window", "sliding_window"),
            _window,
            lambda config: {
                "use_sliding_window": config.sliding_window is not None,
                "sliding_window": config.sliding_window,
            },
        ),
        Fixed("qk_norm", "head"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *QK_NORM,
        *PRE_NORMS,
        *GATED_MLP,
        *same(f"{LAYER}.mlp.gate.weight"),
        *ROUTED_EXPERTS,
    ),
)
