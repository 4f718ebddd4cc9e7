"""InternLM3: the Llama model itself, with biases in all projections or in none (Shanghai AI Laboratory 2025).

The stock config refuses biases in some of them.
"""

from dataclasses import replace

from .llama import FAMILY as LLAMA
from .shared_fields import without

FAMILY = replace(LLAMA, model_type="internlm3", config_rows=without(LLAMA.config_rows, "pretraining_tp"))
