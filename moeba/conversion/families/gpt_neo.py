"""GPT-Neo: GPT-2 with unscaled attention, every other layer in a window (Black et al. 2021)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from ..rows import linear, renamed
from .shared.fields import CLASSIC, TRAINED_PADDING
from .shared.gpt_blocks import GPT2_EMBEDDINGS_AND_NORMS, GPT_BLOCK, masks
from .shared.tensors import LAYER, PADDED_ROWS, QKV, linears

KINDS = {"global": "full_attention", "local": "sliding_attention"}


def _layers(native: Any) -> dict[str, Any]:
    unknown = sorted(set(native["attention_layers"]) - set(KINDS))
    if unknown:
        raise ValueError(f"attention_layers={unknown} is supported as {list(KINDS)} only")
    local = "local" in native["attention_layers"]
    if local and native["window_size"] < 2:
        raise ValueError(
            f"window_size={native['window_size']} is supported from 2 on: stock code sees one token with a cache, and "
            "another number without"
        )
    return {
        "layer_types": [KINDS[kind] for kind in native["attention_layers"]],
        "sliding_window": native["window_size"] if local else None,
    }


def _layers_back(config: MoebaConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in KINDS.items()}
    kinds = [names[kind] for kind in config.layer_types]
    found = {"attention_layers": kinds, "attention_types": [[[kind], 1] for kind in kinds]}
    return found if config.sliding_window is None else {**found, "window_size": config.sliding_window}


def _feed_forward_width(native: Any) -> dict[str, Any]:
    given = native["intermediate_size"]
    return {"intermediate_size": 4 * native["hidden_size"] if given is None else given}


FAMILY = Family(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    kind="dense",
    config_rows=(
        *pairs("hidden_size", "max_position_embeddings", "attention_dropout", "classifier_dropout"),
        Pair("num_layers", "num_hidden_layers"),
        Pair("num_heads", "num_attention_heads"),
        Pair("activation_function", "hidden_act"),
        Pair("layer_norm_epsilon", "norm_eps"),
        Pair("resid_dropout", "hidden_dropout"),
        Pair("embed_dropout", "embedding_dropout"),
        Computed(
            ("intermediate_size",),
            _feed_forward_width,
            lambda config: {"intermediate_size": config.intermediate_size},
        ),
        Computed(("attention_types", "attention_layers", "window_size"), _layers, _layers_back),
        *CLASSIC,
        TRAINED_PADDING,
        Fixed("attention_bias", False),
        Fixed("attention_output_bias", True),
        Fixed("attention_multiplier", 1.0),
        Fixed("attention_score_dtype", "float32"),
        Fixed("position_embedding_type", "learned"),
    ),
    rows=(
        *GPT2_EMBEDDINGS_AND_NORMS,
        *(
            renamed(f"{GPT_BLOCK}.attn.attention.{part}.weight", f"{LAYER}.self_attn.{part}.weight")
            for part in QKV
        ),
        *linear(f"{GPT_BLOCK}.attn.attention.out_proj", f"{LAYER}.self_attn.o_proj"),
        *linears(f"{GPT_BLOCK}.mlp", f"{LAYER}.mlp", up_proj="c_fc", down_proj="c_proj"),
    ),
    dropped=masks(f"{GPT_BLOCK}.attn.attention"),
    base_prefix="transformer.",
    reordered="stock caches and masks what a window has left behind, with which each sum of a cached step is longer; "
    "a ready 4-D mask takes the window's place, as in all families but stock's own, which keeps the window; "
    + PADDED_ROWS,
)
