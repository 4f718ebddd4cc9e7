"""CodeGen: GPT-J with one projection for queries, values and keys, cut for four devices (Nijkamp et al. 2022)."""

from dataclasses import replace
from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Inert
from ..rows import Dropped, Each, PairsToHalves, Row, SplitShards
from .gpt2 import BLOCK
from .gptj import CONFIG_ROWS, ROWS
from .gptj import FAMILY as GPTJ
from .shared_fields import without
from .shared_tensors import LAYER

SHARDS = 4


def _heads(native: Any) -> dict[str, Any]:
    heads = native["n_head"]
    if heads % SHARDS:
        raise ValueError(f"n_head={heads} is no multiple of {SHARDS}, the shards of the stock projection")
    return {"num_attention_heads": heads}


def _heads_back(config: MoebaConfig) -> dict[str, Any]:
    return {"n_head": config.num_attention_heads}


FAMILY = replace(
    GPTJ,
    model_type="codegen",
    architecture="CodeGenForCausalLM",
    config_rows=(
        *without(CONFIG_ROWS, "n_head"),
        Computed(("n_head",), _heads, _heads_back),
        Fixed("rotary_precision", "float32"),
        Inert("n_ctx", "the stock model computes a width from it that it does not use"),
    ),
    rows=(
        *ROWS,
        Row(
            (f"{BLOCK}.attn.qkv_proj.weight",),
            tuple(f"{LAYER}.self_attn.{part}.weight" for part in ("q_proj", "v_proj", "k_proj")),
            (SplitShards(SHARDS, parts=3), Each((PairsToHalves(), None, PairsToHalves()))),
        ),
    ),
    dropped=(*GPTJ.dropped, Dropped(f"{BLOCK}.attn.causal_mask", "causal mask")),
    rounds_otherwise=True,  # in transformers 5.23
)
