"""GPT-J: attention and feed-forward side by side on one layer norm, the first channels rotated in pairs (Wang 2021)."""

import math
from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import rope_of, rotated_width
from ..config_rows import Computed, ConfigRow, Fixed
from ..family import Family
from ..rows import PairsToHalves, Row, linear, renamed
from .gpt2 import BLOCK, FIELDS, MASKS
from .shared_fields import without
from .shared_tensors import LAYER, linears


def _rope(native: Any) -> dict[str, Any]:
    width, rotated = native["n_embd"] // native["n_head"], native["rotary_dim"]
    factor = rotated / width
    if int(width * factor) != rotated:  # a quotient that was rounded down
        factor = math.nextafter(factor, math.inf)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}
    return {"rope_parameters": rope}


def _rope_back(config: MoebaConfig) -> dict[str, Any]:
    return {"rotary_dim": rotated_width(config) if rope_of(config) else config.head_dim}


CONFIG_ROWS: tuple[ConfigRow, ...] = (
    *without(FIELDS, "add_cross_attention", "scale_attn_weights"),
    Computed(("rotary_dim",), _rope, _rope_back),
    Fixed("block_order", "parallel"),
    Fixed("attention_bias", False),
    Fixed("lm_head_bias", True),
    Fixed("attention_score_dtype", "float32"),
)
# All but queries, keys and values.
ROWS: tuple[Row, ...] = (
    renamed("transformer.wte.weight", "model.embed_tokens.weight"),
    *linear("transformer.ln_f", "model.norm"),
    *linear("lm_head", "lm_head"),
    *linear(f"{BLOCK}.ln_1", f"{LAYER}.input_layernorm"),
    renamed(f"{BLOCK}.attn.out_proj.weight", f"{LAYER}.self_attn.o_proj.weight"),
    *linears(f"{BLOCK}.mlp", f"{LAYER}.mlp", up_proj="fc_in", down_proj="fc_out"),
)

FAMILY = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    kind="dense",
    config_rows=CONFIG_ROWS,
    rows=(
        *ROWS,
        *(renamed(f"{BLOCK}.attn.{part}.weight", f"{LAYER}.self_attn.{part}.weight", *operations)
          for part, operations in (("q_proj", (PairsToHalves(),)), ("k_proj", (PairsToHalves(),)), ("v_proj", ()))),
    ),
    dropped=MASKS,
    base_prefix="transformer.",
    reordered="stock rotates neighbouring entries, and divides scores by a root instead of multiplying",
)  # fmt: skip
