"""Granite with sliding windows: some layers slide, heads may attend to nothing, thetas by layer (IBM 2025)."""

from ..family import Family
from ..rows import same
from .shared.granite_blocks import SLIDING_FIELDS
from .shared.tensors import LAYER, LLAMA_TENSORS

FAMILY = Family(
    model_type="granite_swa",
    architecture="GraniteSWAForCausalLM",
    kind="dense",
    config_rows=SLIDING_FIELDS,
    rows=(*LLAMA_TENSORS, *same(f"{LAYER}.self_attn.sinks")),
)
