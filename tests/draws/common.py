"""What the draws of many families share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

LENGTH = 40  # tokens of a test's input: past every window and original context drawn here
ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
WINDOWED = ("full_attention", "sliding_attention")


def chance(rng: random.Random, probability: float = 0.5) -> bool:
    """True with this probability."""
    return rng.random() < probability


def maybe(rng: random.Random, probability: float = 0.5, **fields: Any) -> dict[str, Any]:
    """The fields, or nothing: the family's own defaults."""
    return fields if chance(rng, probability) else {}


def rope(
    rng: random.Random,
    head_dim: int,
    kinds: Sequence[str] = ROPE_KINDS,
    partial: Sequence[float] = (),
    by_kind: bool = False,
) -> dict[str, Any]:
    """Rope settings of a random type, with an original context that `LENGTH` passes.

    Args:
        head_dim: width that the stock code takes for a head's, from which it computes the rotated part.
        kinds: the types to choose from.
        partial: factors to choose the rotated part from; empty where the family always rotates whole heads.
        by_kind: they are of one kind of layers, where stock code does not look for `truncate`.
    """
    kind = rng.choice(list(kinds))
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": rng.choice([10000.0, 500.0, 1e6])}
    rotated = head_dim
    if partial:
        found["partial_rotary_factor"] = rng.choice(list(partial))
        rotated = int(head_dim * found["partial_rotary_factor"])
    if kind == "dynamic" and rotated == 2:  # stock divides by the rotated width less 2
        kind = found["rope_type"] = "linear"
    if kind != "default":
        found["factor"] = rng.choice([2.0, 4.0])
    if kind in ("yarn", "longrope", "llama3"):
        found["original_max_position_embeddings"] = 16
    if kind == "yarn":
        found |= maybe(rng, 0.3, attention_factor=0.8) | maybe(rng, 0.3, beta_fast=16.0, beta_slow=2.0)
        found |= maybe(rng, 0.3, mscale=1.0, mscale_all_dim=0.5)
        found |= maybe(rng, 0.0 if by_kind else 0.3, truncate=False)
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            found[name] = [rng.uniform(1, 4) for _ in range(rotated // 2)]
        found |= maybe(rng, 0.3, attention_factor=1.3)
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return found


def layer_types(rng: random.Random, layers: int, kinds: Sequence[str] = WINDOWED) -> list[str]:
    """A kind for each layer, in any order; one kind alone happens too."""
    return [rng.choice(list(kinds)) for _ in range(layers)]


def windows(rng: random.Random, layers: int) -> dict[str, Any]:
    """Qwen's ways to say which layers slide. A stock cache fails on pieces of text with a window of one token."""
    choice = rng.choice(["off", "stale", "from", "listed", "never"])
    found: dict[str, Any] = {"use_sliding_window": choice != "off", "sliding_window": rng.choice([2, 3, 9])}
    if choice == "stale":
        found["sliding_window"] = None
    elif choice == "from":
        found["max_window_layers"] = rng.randrange(layers)
    elif choice == "never":
        found["max_window_layers"] = layers + 1
    elif choice == "listed":
        found["layer_types"] = layer_types(rng, layers)
    return found


def heads(
    rng: random.Random, free_width: bool = True, head_dims: Sequence[int] = (4, 8, 16)
) -> dict[str, int]:
    """Numbers and width of heads, and the hidden size.

    Args:
        free_width: the width of a head need not be `hidden_size / num_attention_heads`.
    """
    kv_heads, head_dim = rng.choice([1, 2, 3]), rng.choice(list(head_dims))
    count = kv_heads * rng.choice([1, 2, 4])
    width = rng.choice([4, 6, 10]) if free_width else head_dim
    while count > kv_heads and count * width > 64:
        count -= kv_heads
    return {
        "hidden_size": count * width,
        "num_attention_heads": count,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def llama_like(
    rng: random.Random,
    free_width: bool = True,
    kinds: Sequence[str] = ROPE_KINDS,
    partial: Sequence[float] = (),
    eps_name: str = "rms_norm_eps",
) -> dict[str, Any]:
    """The fields of Llama that most families have: sizes, activation, rope, epsilon, tying.

    Args:
        free_width: the config has a `head_dim` of its own.
        kinds, partial: see `rope`.
        eps_name: what the family calls the norms' epsilon.
    """
    sizes = heads(rng, free_width)
    head_dim = sizes["head_dim"] if free_width else sizes.pop("head_dim")
    return dict(
        **sizes,
        vocab_size=rng.choice([67, 90]),
        intermediate_size=rng.choice([24, 37]),
        num_hidden_layers=rng.choice([1, 2, 3]),
        hidden_act=rng.choice(ACTIVATIONS),
        max_position_embeddings=rng.choice([32, 64]),
        tie_word_embeddings=chance(rng),
        rope_parameters=rope(rng, head_dim, kinds, partial),
        attention_dropout=rng.choice([0.0, 0.1]),
        pad_token_id=rng.choice([None, 0]),
        **{eps_name: rng.choice([1e-6, 1e-5, 1e-3])},
    )


def not_narrow(fields: dict[str, Any], least: int = 12) -> dict[str, Any]:
    """The fields with thrice the heads where the stream has but a few channels.

    A norm of so few multiplies rounding, and a CPU multiplies matrices that narrow in ways of their own.
    """
    if fields["hidden_size"] >= least:
        return fields
    names = [name for name in ("hidden_size", "num_attention_heads", "num_key_value_heads") if name in fields]
    return {**fields, **{name: 3 * fields[name] for name in names}}


def experts(rng: random.Random, count_name: str = "num_experts") -> dict[str, Any]:
    """A number of experts that is mostly no power of two, and all, one or some of them a token."""
    count = rng.choice([1, 3, 12, 13, 16])
    return {count_name: count, "num_experts_per_tok": rng.choice([1, count, min(3, count)])}


def grouped_experts(rng: random.Random, count_name: str = "num_experts") -> dict[str, Any]:
    """Experts in groups of which only some are open to a token (DeepSeek-V3); each group has at least two."""
    groups = rng.choice([1, 2, 4])
    size = rng.choice([2, 3, 6])
    open_groups = rng.randint(1, groups)
    return {
        count_name: groups * size,
        "n_group": groups,
        "topk_group": open_groups,
        "num_experts_per_tok": rng.choice([1, min(3, open_groups * size), open_groups * size]),
    }


def router_loss(rng: random.Random) -> dict[str, Any]:
    """The load-balancing loss of Mixtral and its descendants: no part of the logits."""
    return {"router_aux_loss_coef": rng.choice([0.0, 0.02])}


def latent(rng: random.Random) -> dict[str, Any]:
    """The sizes of latent attention (DeepSeek-V2), with and without a compressed query."""
    return {
        "q_lora_rank": rng.choice([None, 12]),
        "kv_lora_rank": rng.choice([8, 10]),
        "qk_nope_head_dim": rng.choice([4, 6]),
        "qk_rope_head_dim": rng.choice([4, 8]),
        "v_head_dim": rng.choice([4, 7]),
    }
