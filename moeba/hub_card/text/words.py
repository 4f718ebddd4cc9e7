"""An architecture in plain words, from its config; and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view, rope_of
from ..reading.records import as_json
from .escapes import cell, code, link

__all__ = [
    "byte_size",
    "cell",
    "code",
    "describe",
    "figure",
    "figures",
    "link",
    "listing",
    "number",
    "short_number",
]

NORMS = {
    "rmsnorm": "RMS norms",
    "rmsnorm_float32": "RMS norms multiplied in float32",
    "rmsnorm_unit_offset": "RMS norms whose weights are stored as their distance from 1",
    "rmsnorm_nonparametric": "RMS norms without weights",
    "layernorm": "layer norms",
    "layernorm_float32": "layer norms multiplied in float32",
    "layernorm_unit_offset": "layer norms whose weights are stored as their distance from 1",
    "layernorm_nonparametric": "layer norms without weights",
}
BLOCK_ORDERS = {
    "pre_norm": "before attention and before the feed-forward",
    "pre_norm_normed_residual": "before attention and before the feed-forward, within the residual stream",
    "post_norm": "after attention and the feed-forward were added to the residual stream",
    "sandwich_norm": "before and after both attention and the feed-forward",
    "output_norm": "on the outputs of attention and of the feed-forward",
    "parallel": "before attention and the feed-forward, side by side on one normalised input",
    "parallel_stream_first": "before attention and the feed-forward, side by side on one normalised input",
    "parallel_two_norms": "before attention and the feed-forward, side by side with a norm each",
}
POSITIONS = {
    "rope": "rotary",
    "learned": "a learned vector for each place",
    "sinusoidal": "fixed sine and cosine waves",
    "sinusoidal_fairseq": "fixed sine and cosine waves",
    "alibi": "scores fall with distance, at a slope for each head",
    "relative": "a learned bias of the scores for each range of distances",
    "none": "none, order is known from the causal mask alone",
}
QK_NORMS = {
    "none": "",
    "head": ", queries and keys normalised head by head",
    "per_head": ", queries and keys normalised by a norm for each head",
    "full": ", queries and keys normalised over all heads together",
}
FEED_FORWARDS = {"gated": "gated", "clamped_gated": "gated with cut-off values", "mlp": "two-layer"}
SCORES = {"softmax": "a softmax over all experts", "sigmoid": "a sigmoid for each expert"}
ROUTERS = {
    "topk_softmax": "the {best} experts with the highest logits are chosen, and a softmax over these weighs them",
    "topk_sigmoid": "the {best} experts with the highest logits are chosen, and a sigmoid of each weighs it",
    "sparsemixer": "{best} experts are chosen one after the other, each weighed among those close to the best left",
}
OUTPUT_GATES = {
    "none": "",
    "sigmoid": ", the mixed values gated by a sigmoid",
    "softplus": ", the mixed values gated by a softplus",
    "softplus_per_head": ", each head's mixed values gated by a softplus",
}


def describe(config: MoebaConfig) -> dict[str, str]:
    """One short description for each part of the model, by the part's name."""
    parts = {
        "Kind": _kind(config),
        "Attention": _attention(config),
        "Positions": _positions(config),
        "Norms": f"{NORMS[config.norm_type]} {BLOCK_ORDERS[config.block_order]}",
        "Feed-forward": _dense(config),
        "Experts": _experts(config),
        "Router": router_rule(config),
        "Head": _head(config),
    }
    return {name: words for name, words in parts.items() if words}


def router_rule(config: MoebaConfig) -> str:
    """How a token's experts are chosen and weighted; empty for a dense model."""
    if not config.sparse_layers:
        return ""
    best = _over(config, "num_experts_per_tok", config.sparse_layers)
    if config.router_type != "topk":
        return ROUTERS[config.router_type].format(best=best)
    words = f"scores are {SCORES[config.scoring_func]}"
    if config.n_group > 1:
        words += f"; only the best {config.topk_group} of {config.n_group} groups of experts take part"
    words += f"; the best {best} are chosen"
    if config.router_selection_bias:
        words += " after a balancing bias is added, which does not count in the weights"
    words += ", and their scores are " + ("made to sum to 1" if config.norm_topk_prob else "used as they are")
    if config.routed_scaling_factor != 1:
        words += f", times {config.routed_scaling_factor:g}"
    return words


def number(count: int) -> str:
    """A count in full, `1,234,567`, and from a million on also in short."""
    return f"{short_number(count)} ({count:,})" if count >= 10**6 else f"{count:,}"


def short_number(count: int) -> str:
    """A count to three digits: `1.23M`."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 999.5 * size else f"{count / size:.0f}{unit}"
    return str(count)


def byte_size(nbytes: float) -> str:
    """Bytes in the decimal units of the Hub: `1.23 GB`."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}" if nbytes < 999.5 * size else f"{nbytes / size:.0f} {unit}"
    return f"{nbytes:.0f} bytes"


def figure(value: Any) -> str:
    """A measured value: floats to three digits; of many numbers, such as one a layer, the largest."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        return f"at most {figure(max(value))}"
    return value if isinstance(value, str) else as_json(value)


def figures(values: Mapping[str, Any]) -> str:
    """`max abs diff 1.2e-06, tokens 512`."""
    return ", ".join(f"{name.replace('_', ' ')} {figure(value)}" for name, value in values.items())


def listing(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = list(names)
    return f"{', '.join(most)} and {last}" if most else last


def _over(config: MoebaConfig, name: str, layers: list[int] | None = None) -> str:
    """A size of the given layers (default all): `8`, or `4 to 8` where layers differ."""
    chosen = range(config.num_hidden_layers) if layers is None else layers
    sizes = sorted({getattr(layer_view(config, layer), name) for layer in chosen})
    return " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "no"


def _kind(config: MoebaConfig) -> str:
    kind = (
        "decoder (a token sees those before it)" if config.is_causal else "encoder (a token sees all others)"
    )
    return (
        f"{'mixture-of-experts' if config.sparse_layers else 'dense'} {kind}: {config.num_hidden_layers} "
        f"layers, {config.hidden_size:,} wide, {config.vocab_size:,} tokens in the vocabulary"
    )


def _attention(config: MoebaConfig) -> str:
    queries, keys = _over(config, "num_attention_heads"), _over(config, "num_key_value_heads")
    heads = f"{queries} heads" if queries == keys else f"{queries} query heads share {keys} key/value heads"
    words = f"{heads}, each {_over(config, 'head_dim')} wide{QK_NORMS[config.qk_norm]}"
    if config.attention_type == "latent":
        words += f", keys and values unfolded from a latent of {config.kv_lora_rank:,} a token"
    words += OUTPUT_GATES[config.attention_output_gate]
    if config.attention_sink_layer_types:
        words += ", heads may attend to nothing (sinks)"
    if config.attn_logit_softcapping is not None:
        words += f", scores capped at {config.attn_logit_softcapping:g}"
    sliding = [i for i, kind in enumerate(config.layer_types or []) if kind == "sliding_attention"]
    if sliding:
        window = _over(config, "sliding_window", sliding)
        words += f"; {len(sliding)} of {config.num_hidden_layers} layers see the nearest {window} tokens only"
    return words


def _positions(config: MoebaConfig) -> str:
    words = POSITIONS[config.position_embedding_type]
    if config.position_embedding_type == "rope":
        rope = rope_of(config)
        nested = {kind: value for kind, value in rope.items() if isinstance(value, dict)}
        rotations = [
            f"{kind.replace('_', ' ')}: {_rotation(value)}" for kind, value in sorted(nested.items())
        ]
        words += f" ({'; '.join(rotations) or _rotation(rope)})"
        if not all(config.rotary_layers):
            words += f" in {sum(config.rotary_layers)} of {config.num_hidden_layers} layers"
    reach = "at most" if config.position_embedding_type == "learned" else "set up for"
    return f"{words}; {reach} {config.max_position_embeddings:,} tokens"


def _rotation(rope: Mapping[str, Any]) -> str:
    words = f"base {rope['rope_theta']:,g}" if "rope_theta" in rope else ""
    if rope.get("rope_type", "default") != "default":
        factor = f" by {rope['factor']:g}" if isinstance(rope.get("factor"), int | float) else ""
        words += f", {rope['rope_type']} scaling{factor}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        words += f", over {rope['partial_rotary_factor']:.0%} of each head"
    return words.removeprefix(", ")


def _dense(config: MoebaConfig) -> str:
    layers = [i for i in range(config.num_hidden_layers) if i not in set(config.sparse_layers)]
    if not layers:
        return ""
    where = "" if not config.sparse_layers else f" in {len(layers)} of {config.num_hidden_layers} layers"
    width = _over(config, "intermediate_size", layers)
    return f"{FEED_FORWARDS[config.feed_forward_type]}, {config.hidden_act} activation, {width} wide{where}"


def _experts(config: MoebaConfig) -> str:
    layers = config.sparse_layers
    if not layers:
        return ""
    words = (
        f"in {len(layers)} of {config.num_hidden_layers} layers the feed-forward is "
        f"{_over(config, 'num_experts', layers)} experts, {FEED_FORWARDS[config.feed_forward_type]}, "
        f"{config.hidden_act} activation, each {_over(config, 'moe_intermediate_size', layers)} wide; "
        f"a token visits {_over(config, 'num_experts_per_tok', layers)} of them"
    )
    if config.shared_expert_intermediate_size:
        gate = ", weighted by a gate of its own" if config.shared_expert_gate else ""
        words += (
            f", and a shared expert {_over(config, 'shared_expert_intermediate_size', layers)} wide{gate}"
        )
    return words


def _head(config: MoebaConfig) -> str:
    words = "the token embeddings, used again" if config.tie_word_embeddings else "weights of its own"
    if config.final_logit_softcapping is not None:
        words += f", logits capped at {config.final_logit_softcapping:g}"
    return words
