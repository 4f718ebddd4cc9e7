"""Keys that stock transformers does not read, but by which a checkpoint's own code computes another function.

A key that nobody reads is kept. One of these names is refused where its value says otherwise than the stock model
computes: the checkpoint was then trained as another model than the one that transformers makes of it. Only what no
tensor shows stands here; an additional bias or norm is found as a tensor without a place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..configuration import MoebaConfig
from ..configuration.model_facts import rope_of, rotated_width


@dataclass(frozen=True)
class Claim:
    """
    Attributes:
        names: the keys that make the claim.
        holds: whether a value says what a model of this config computes; None and values of other types are not asked.
        meaning: what another value means in the code that reads it.
        kind: the types of values that make a claim at all.
    """

    names: tuple[str, ...]
    holds: Callable[[Any, MoebaConfig], bool]
    meaning: str
    kind: type | tuple[type, ...] = ()

    def is_made_by(self, value: Any) -> bool:
        """Whether a value is of the types that say something."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        return value is not None and (not kinds or type(value) in kinds)

    def is_true(self, value: Any, config: MoebaConfig) -> bool:
        try:
            return self.holds(value, config)
        except (TypeError, ZeroDivisionError):  # no value that such code takes
            return False


def _never(value: Any, config: MoebaConfig) -> bool:
    return not value


def _factor(config: MoebaConfig) -> float:
    """What logits are multiplied by."""
    return config.logit_scale if config.logit_scale_operation == "multiply" else 1 / config.logit_scale


def _equals(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=1e-6)


def _same_cap(value: float, cap: float | None) -> bool:
    return value == cap or (not value and cap is None)


def _all_full(value: Any, config: MoebaConfig) -> bool:
    return list(value) == list(config.layer_types) or set(value) <= {"full_attention", "attention"}


def _window(value: int, config: MoebaConfig) -> bool:
    return value == config.sliding_window or value >= config.max_position_embeddings


def _selection(value: str, config: MoebaConfig) -> bool:
    if config.router_selection_bias:
        return value == "noaux_tc"
    return (
        value in ("group_limited_greedy", "greedy")
        if config.n_group == 1
        else value == "group_limited_greedy"
    )


def _rotated(config: MoebaConfig) -> int:
    return rotated_width(config) if rope_of(config) else 0


def _every_layer_after_the_dense(value: Any, config: MoebaConfig) -> bool:
    if isinstance(value, list):
        return [bool(item) for item in value] == [kind == "sparse" for kind in config.mlp_layer_types or []]
    return bool(value == 1)


_NUMBER = (int, float)
_PARALLEL = ("parallel", "parallel_stream_first", "parallel_two_norms")
_MIXTURE = "the experts are weighted otherwise"

CLAIMS: tuple[Claim, ...] = (
    # What code shared by all stock models reads, or another family's, though this one's config does not declare it.
    Claim(("head_dim", "qk_head_dim", "q_head_dim"), lambda v, c: v == c.head_dim, "heads of another width"),
    Claim(("num_key_value_heads",), lambda v, c: v == c.num_key_value_heads, "another number of key heads", int),
    Claim(("layer_types",), _all_full, "layers of other kinds", (list, tuple)),
    Claim(
        ("sliding_window",),
        _window,
        "the stock cache forgets what is further back, and the stock attention does not",
        int,
    ),
    Claim(  # shared code asks for it where there is no window
        ("attention_chunk_size",),
        lambda v, c: c.sliding_window is not None or v >= c.max_position_embeddings,
        "attention within chunks only",
        int,
    ),
    Claim(("is_causal",), lambda v, c: bool(v), "every token sees the whole text"),
    Claim(("kv_sharing_modes", "per_layer_config"), _never, "layers that differ"),
    Claim(("fusion_config", "transformers_weights"), _never, "other modules or weights are loaded"),
    # What the code beside the checkpoint does.
    Claim(
        ("add_cross_attention", "is_encoder_decoder"), _never, "layers that attend to an encoder's output", bool
    ),
    Claim(("pruned_heads",), _never, "attention heads were taken out"),
    Claim(("quantization_config", "compression_config"), _never, "the weights are quantised"),
    Claim(
        ("use_bidirectional_attention", "prefix_lm"), _never, "tokens see what follows them", (bool, str)
    ),
    Claim(("use_cla",), _never, "layers share keys and values", bool),
    Claim(("use_mla",), lambda v, c: v == (c.attention_type == "latent"), "another kind of attention", bool),
    Claim(("alibi", "use_alibi"), lambda v, c: v == (c.position_embedding_type == "alibi"),
          "scores fall with the distance", bool),
    Claim(("position_embedding_type",), lambda v, c: not v.startswith("relative"), "relative positions", str),
    Claim(("use_dynamic_ntk", "use_logn_attn", "attn_temperature_tuning", "position_embedding_xdrope"), _never,
          "attention changes with the length of the text", bool),
    Claim(("rotary_dim",), lambda v, c: v == _rotated(c), "rope turns so many entries of a head", int),
    Claim(("rotary_pct", "rope_pct", "rope_percent", "rotary_percent"),
          lambda v, c: int(v * c.rotary_head_dim) == _rotated(c), "rope turns this part of a head", _NUMBER),
    Claim(("rope_ratio",), lambda v, c: v == 1, "positions are counted in other steps", _NUMBER),
    Claim(("scale_attn_weights",), lambda v, c: bool(v), "scores are not divided by the root of a head's width", bool),
    Claim(("clip_qkv",), lambda v, c: _same_cap(v, c.clip_qkv), "queries, keys and values are clamped", _NUMBER),
    Claim(("attn_logit_softcapping", "attn_logit_softcap"),
          lambda v, c: _same_cap(v, c.attn_logit_softcapping), "scores are capped", _NUMBER),
    Claim(("final_logit_softcapping", "final_logit_softcap"),
          lambda v, c: _same_cap(v, c.final_logit_softcapping), "logits are capped", _NUMBER),
    Claim(("use_sliding_window",), lambda v, c: not v or "sliding_attention" in c.layer_types,
          "layers that see a window", bool),
    Claim(("parallel_attn", "use_parallel_residual", "parallel_residual", "use_parallel_block"),
          lambda v, c: v == (c.block_order in _PARALLEL), "blocks in another order", bool),
    Claim(("apply_residual_connection_post_layernorm",), _never, "the residual starts after the norm", bool),
    Claim(("scale_emb", "embedding_multiplier", "embed_scale"),
          lambda v, c: _equals(v, c.embedding_multiplier), "embeddings are scaled", _NUMBER),
    Claim(("scale_depth",), lambda v, c: _equals(v / c.num_hidden_layers**0.5, c.residual_multiplier),
          "residuals are scaled", _NUMBER),
    Claim(("residual_multiplier",), lambda v, c: _equals(v, c.residual_multiplier), "residuals are scaled", _NUMBER),
    Claim(("attention_multiplier",), lambda v, c: _equals(v, c.attention_multiplier or c.head_dim**-0.5),
          "scores are scaled otherwise", _NUMBER),
    Claim(("dim_model_base",), lambda v, c: _equals(v / c.hidden_size, _factor(c)),
          "logits are scaled", _NUMBER),
    Claim(("logit_scale",), lambda v, c: _equals(v, _factor(c)), "logits are scaled", _NUMBER),
    Claim(("logits_scaling",), lambda v, c: _equals(v * _factor(c), 1.0), "logits are scaled", _NUMBER),
)  # fmt: skip
_NEIGHBOURS = Claim(
    ("rope_interleaved", "interleaved_rope"), _never, "rope turns neighbouring entries together", bool
)
# And of routers, where there are experts.
ROUTER_CLAIMS: tuple[Claim, ...] = (
    Claim(("scoring_func", "score_func", "score_function"), lambda v, c: v == c.scoring_func, _MIXTURE, str),
    Claim(("topk_method",), _selection, "the experts are chosen otherwise", str),
    Claim(("group_limited_greedy",), lambda v, c: not v or c.n_group > 1, "the experts are chosen otherwise", bool),
    Claim(("norm_topk_prob", "route_norm"), lambda v, c: v == c.norm_topk_prob, _MIXTURE, bool),
    Claim(("routed_scaling_factor", "route_scale"), lambda v, c: _equals(v, c.routed_scaling_factor), _MIXTURE,
          _NUMBER),
    Claim(("moe_layer_freq",), _every_layer_after_the_dense, "other layers have experts"),
    Claim(("moe_apply_router_weight_on_input",), _never, _MIXTURE, bool),
    Claim(("zero_expert_num",), _never, "some experts are empty", int),
)  # fmt: skip

CLAIMED = frozenset(name for claim in (*CLAIMS, *ROUTER_CLAIMS, _NEIGHBOURS) for name in claim.names)


def refused(keys: Mapping[str, Any], config: MoebaConfig, interleaved: bool = False) -> list[str]:
    """Of keys that the stock model does not read, those that must not be passed over: value, and what it means.

    Args:
        config: what the stock model computes.
        interleaved: it rotates neighbouring entries together.
    """
    claims = (
        CLAIMS + (ROUTER_CLAIMS if config.sparse_layers else ()) + (() if interleaved else (_NEIGHBOURS,))
    )
    return [
        f"{name}={value!r} (where it is read: {claim.meaning})"
        for name, value in keys.items()
        for claim in claims
        if name in claim.names and claim.is_made_by(value) and not claim.is_true(value, config)
    ]
