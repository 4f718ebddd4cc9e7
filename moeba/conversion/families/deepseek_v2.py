"""DeepSeek-V2: latent attention, and experts in groups scored by their best one (DeepSeek-AI 2024)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Only, Stated, pairs
from ..family import Family
from ..rows import PairsToHalves
from .shared.experts import EVERY_LAYER, SCALED_EXPERTS, SHARING_BLOCK, sparse_layers
from .shared.fields import SLICED
from .shared.latent_attention import LATENT_SIZES, head_parts, latent_attention
from .shared.tensors import EMBEDDINGS_AND_HEAD

TURNED = (
    PairsToHalves(start=lambda config: config.head_dim - config.rotary_head_dim),
    PairsToHalves(
        start=lambda config: config.kv_lora_rank or 0,
        width=lambda config: (config.kv_lora_rank or 0) + config.rotary_head_dim,
    ),
)


def _groups(native: Any) -> dict[str, Any]:
    method, groups = native["topk_method"], {name: native[name] for name in ("n_group", "topk_group")}
    if method == "greedy":
        return {}
    if method != "group_limited_greedy" or not all(groups.values()):
        raise ValueError(f"topk_method={method!r} with {groups}: the stock router cannot choose")
    return {**groups, "group_scoring": "max"}


def _groups_back(config: MoebaConfig) -> dict[str, Any]:
    if config.n_group == 1:
        return {"topk_method": "greedy"}
    groups = {"n_group": config.n_group, "topk_group": config.topk_group}
    return {"topk_method": "group_limited_greedy", **groups}


FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    kind="moe",
    config_rows=(
        *LATENT_SIZES,
        *SCALED_EXPERTS,
        *pairs("mlp_bias"),
        head_parts(),
        sparse_layers("first_k_dense_replace"),
        Computed(("topk_method", "n_group", "topk_group"), _groups, _groups_back),
        Only("norm_topk_prob", False, "the stock router never renormalises, the authors' does"),
        SLICED,
        Fixed("norm_topk_prob", False),
        Fixed("router_matmul_dtype", "float32"),
        Fixed("router_weight_dtype", "float32"),
        Fixed("rotary_precision", "float32"),
        Stated("scoring_func", "softmax", "vLLM and SGLang route by it"),
        EVERY_LAYER,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *latent_attention(*TURNED), *SHARING_BLOCK),
    reordered="stock rotates neighbouring entries as complex numbers: other products, added in another order",
)
