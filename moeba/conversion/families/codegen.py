"""CodeGen: GPT-J with one projection for queries, values and keys, cut for four devices (Nijkamp et al. 2022)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Inert
from ..family import Family
from ..rows import Dropped, Each, PairsToHalves, Row, SplitShards
from .shared.fields import without
from .shared.gpt_blocks import GPT2_MASKS, GPT_BLOCK, GPTJ_FIELDS, GPTJ_REORDERED, GPTJ_TENSORS
from .shared.tensors import LAYER

SHARDS = 4


def _heads(native: Any) -> dict[str, Any]:
    heads = native["n_head"]
    if heads % SHARDS:
        raise ValueError(f"n_head={heads} is no multiple of {SHARDS}, the shards of the stock projection")
    return {"num_attention_heads": heads}


def _heads_back(config: MoebaConfig) -> dict[str, Any]:
    return {"n_head": config.num_attention_heads}


FAMILY = Family(
    model_type="codegen",
    architecture="CodeGenForCausalLM",
    kind="dense",
    config_rows=(
        *without(GPTJ_FIELDS, "n_head"),
        Computed(("n_head",), _heads, _heads_back),
        Fixed("rotary_precision", "float32"),
        Inert("n_ctx", "the stock model computes a width from it that it does not use"),
    ),
    rows=(
        *GPTJ_TENSORS,
        Row(
            (f"{GPT_BLOCK}.attn.qkv_proj.weight",),
            tuple(f"{LAYER}.self_attn.{part}.weight" for part in ("q_proj", "v_proj", "k_proj")),
            (SplitShards(SHARDS, parts=3), Each((PairsToHalves(), None, PairsToHalves()))),
        ),
    ),
    dropped=(*GPT2_MASKS, Dropped(f"{GPT_BLOCK}.attn.causal_mask", "causal mask")),
    base_prefix="transformer.",
    reordered=GPTJ_REORDERED,
    rounds_otherwise=True,  # in transformers 5.23
)
