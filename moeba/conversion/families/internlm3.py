"""InternLM3: the Llama model itself, with biases in all projections or in none (Shanghai AI Laboratory 2025).

The stock config refuses biases in some of them.
"""

from ..family import Family
from .shared.llama_blocks import LLAMA_FIELDS
from .shared.tensors import LLAMA_TENSORS

FAMILY = Family(
    model_type="internlm3",
    architecture="LlamaForCausalLM",
    kind="dense",
    config_rows=LLAMA_FIELDS,
    rows=LLAMA_TENSORS,
)
