"""Hunyuan: Llama with a norm on each query and key head, behind the rotation (Tencent 2025)."""

from ..family import Family
from .shared.llama_blocks import HUNYUAN_FIELDS, HUNYUAN_TENSORS
from .shared.tensors import GATED_MLP

FAMILY = Family(
    model_type="hunyuan_v1_dense",
    architecture="HunYuanDenseV1ForCausalLM",
    kind="dense",
    config_rows=HUNYUAN_FIELDS,
    rows=(*HUNYUAN_TENSORS, *GATED_MLP),
)
