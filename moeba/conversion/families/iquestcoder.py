"""IQuest-Coder: the Llama model itself under a config of its own (IQuest Lab 2026)."""

from ..family import Family
from .shared.llama_blocks import LLAMA_FIELDS
from .shared.tensors import LLAMA_TENSORS

FAMILY = Family(
    model_type="iquestcoder",
    architecture="LlamaForCausalLM",
    kind="dense",
    config_rows=LLAMA_FIELDS,
    rows=LLAMA_TENSORS,
)
