"""Config rows of whole models: sizes, biases, switches, dropout, scaled embeddings and logits."""

from __future__ import annotations

from typing import Any

from ....configuration import MoebaConfig
from ...config_rows import Computed, ConfigRow, Fixed, Inert, Pair, pairs
from .rope import ONE_ROPE


def without(rows: tuple[ConfigRow, ...], *names: str) -> tuple[ConfigRow, ...]:
    """The rows, but for those of these native fields."""
    return tuple(row for row in rows if not set(row.theirs) & set(names))


SIZES: tuple[ConfigRow, ...] = pairs(
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "attention_dropout",
) + (ONE_ROPE,)


def _head_dim(native: Any) -> dict[str, Any]:
    return {"head_dim": native["head_dim"] or native["hidden_size"] // native["num_attention_heads"]}


def _head_dim_back(config: MoebaConfig) -> dict[str, Any]:
    usual = config.hidden_size // config.num_attention_heads
    return {} if config.head_dim == usual else {"head_dim": config.head_dim}


# No field of the stock config, but its code reads it where a config.json has it.
UNLISTED_HEAD_DIM = Computed(("head_dim",), _head_dim, _head_dim_back)
SIZES_HEAD_DIM_UNLISTED: tuple[ConfigRow, ...] = (*without(SIZES, "head_dim"), UNLISTED_HEAD_DIM)
SLICED = Inert("pretraining_tp", "a way to slice the products of one training setup")


def switch(theirs: str, ours: str, on: str, off: str) -> Pair:
    """A native switch between two of our choices."""
    return Pair(theirs, ours, lambda given: on if given else off, lambda choice: choice == on)


def every_bias(name: str, *further: str) -> Computed:
    """One switch for the biases of all projections, and for `further` ones."""
    ours = ("attention_bias", "attention_output_bias", "mlp_bias", *further)
    return Computed(
        (name,),
        lambda native: dict.fromkeys(ours, bool(native[name])),
        lambda config: {name: config.attention_bias},
    )


# One switch for the biases of all four projections of attention.
ATTENTION_BIAS = Computed(
    ("attention_bias",),
    lambda native: dict.fromkeys(("attention_bias", "attention_output_bias"), native["attention_bias"]),
    lambda config: {"attention_bias": config.attention_bias},
)


def scaled_logits(name: str, operation: str, none_is_one: bool = False) -> Computed:
    """The number by which a family multiplies or divides its logits.

    Args:
        none_is_one: the native field is None where logits stay as they are.
    """

    def to_theirs(config: MoebaConfig) -> dict[str, Any]:
        return {name: None if none_is_one and config.logit_scale == 1.0 else config.logit_scale}

    def to_ours(native: Any) -> dict[str, Any]:
        value = native[name]
        return logit_scale(1.0 if value is None and none_is_one else value, operation)

    return Computed((name,), to_ours, to_theirs)


def logit_scale(value: float, operation: str) -> dict[str, Any]:
    """Our fields for it: the operation by a number of 1 is none."""
    return {"logit_scale": value, "logit_scale_operation": operation if value != 1.0 else "multiply"}


# GPT's block: layer norms, a feed-forward without a gate, a bias in every projection.
CLASSIC: tuple[ConfigRow, ...] = (
    Fixed("norm_type", "layernorm"),
    Fixed("feed_forward_type", "mlp"),
    Fixed("attention_bias", True),
    Fixed("mlp_bias", True),
)

# The embedding of the padding token is like any other.
TRAINED_PADDING = Fixed("train_padding_embedding", True)


def fourfold_width(name: str) -> Computed:
    """The stream's width, of which that of the feed-forward is four times."""
    return Computed(
        (name,),
        lambda native: {"hidden_size": native[name], "intermediate_size": 4 * native[name]},
        lambda config: {name: config.hidden_size},
    )


def dropout_everywhere(name: str) -> Computed:
    """One rate after the embeddings and after each branch."""
    return Computed(
        (name,),
        lambda native: dict.fromkeys(("hidden_dropout", "embedding_dropout"), native[name]),
        lambda config: {name: config.hidden_dropout},
    )


def scaled_embeddings(switch: str, width: str = "hidden_size") -> Computed:
    """A switch for the root of the stream's width as a factor on the embeddings."""
    return Computed(
        (switch,),
        lambda native: {"embedding_multiplier": native[width] ** 0.5 if native[switch] else 1.0},
        lambda config: {switch: config.embedding_multiplier != 1.0},
    )
