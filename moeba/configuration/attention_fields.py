"""Which tokens a token attends to, and how what it finds is mixed."""

from collections.abc import Iterator
from typing import Any, Literal

from .block_fields import NORMS_WITH_BIAS, norm_kind
from .fields import Filled, Needs, WrongValue, dropped, must, part, says
from .position_fields import ROTATES, rotates
from .ranges import COUNT, EPSILON, MOST, POSITIVE, between

KINDS = ("full_attention", "sliding_attention")
SMALL_WINDOW, SMALL_LIMIT = 8, 0.5


def at_most(limit: float) -> Any:
    """A cut-off that small random numbers still reach."""
    return lambda value: None if value is None else min(value, limit)


def _latent(config: Any) -> bool:
    return bool(config.attention_type == "latent")


def sinking_kinds(config: Any) -> set[str]:
    """The kinds of layers whose heads may attend to nothing."""
    return set(config.attention_sink_layer_types or ()) & set(config.layer_types)


_LATENT = must(Needs(_latent, "attention_type='latent'"))
_GROUPED = must(Needs(lambda c: not _latent(c), "attention_type='grouped_query'"))
_INNER_NORMS = Needs(lambda c: c.qk_norm != "none" or _latent(c), "a qk_norm")
_SINKS = Needs(lambda c: bool(sinking_kinds(c)), "attention_sink_layer_types that layer_types has")


def _scale(config: Any) -> float:
    scale: float = config.attention_multiplier or config.head_dim**-0.5
    return scale


@part()
class AttentionFields:
    """Attention (`modeling/attention.py`, `modeling/latent_attention.py`)."""

    # fmt: off
    num_attention_heads: int = says(
        "query heads", default=12, per_layer=True, within=COUNT, unplanted="a shape")
    num_key_value_heads: Filled[int] = says(
        "key/value heads (grouped-query attention); default: one per query head", default=None,
        per_layer=True, within=COUNT, fills=lambda c: c.num_attention_heads, unplanted="a shape")
    head_dim: Filled[int] = says(
        "width of one head; default `hidden_size // num_attention_heads`", default=None, per_layer=True,
        within=COUNT, fills=lambda c: _divided(c), unplanted="a shape")
    v_head_dim: Filled[int] = says(
        "width of a value head; default `head_dim`", default=None, per_layer=True, within=COUNT,
        fills=lambda c: c.head_dim, unplanted="a shape")
    attention_type: Literal["grouped_query", "latent"] = says(
        "`latent`: keys and values are unfolded from one narrow vector a token (DeepSeek-V2)",
        default="grouped_query", unplanted="other tensors")
    q_lora_rank: int | None = says(
        "width of latent attention's query projection; None for a full one", default=None, per_layer=True,
        within=COUNT, needs=(_LATENT,), unplanted="a shape")
    kv_lora_rank: int | None = says(
        "width of that vector", default=None, per_layer=True, within=COUNT, needs=(_LATENT,),
        unplanted="a shape")
    qk_rope_head_dim: int | None = says(
        "the part of latent attention's `head_dim` that rotates", default=None, within=COUNT,
        needs=(_LATENT,), unplanted="a shape")
    attention_bias: bool = says(
        "bias of the query, key and value projections", default=False, per_layer=True,
        unplanted="a fault of tensors")
    attention_output_bias: Filled[bool] = says(
        "bias of the output projection; default: as `attention_bias`", default=None, per_layer=True,
        fills=lambda c: c.attention_bias, unplanted="a fault of tensors")
    clip_qkv: float | int | None = says(
        "queries, keys and values are clamped to this size", default=None, per_layer=True, within=POSITIVE,
        needs=(_GROUPED,), small=at_most(SMALL_LIMIT),
        wrong=(dropped("queries, keys and values unclipped", "clip_qkv", None),))
    qk_norm: Literal["none", "head", "per_head", "full"] = says(
        "norms of queries and keys: over each head with one weight for all (`head`) or one for each "
            "(`per_head`), or over all heads together (`full`)", default="none",
        needs=(_GROUPED,), unplanted="a fault of tensors")
    qk_norm_type: Filled[str] = says(
        "their kind, and that of latent attention's inner norms; default: the block's", default=None,
        per_layer=True, within=norm_kind, needs=(_INNER_NORMS,), fills=lambda c: c.norm_type,
        unplanted="as the block's")
    qk_norm_eps: Filled[float] = says(
        "their epsilon; default: the block's", default=None, per_layer=True, within=EPSILON,
        needs=(_INNER_NORMS,), fills=lambda c: c.norm_eps, unplanted="as the block's")
    qk_norm_bias: Filled[bool] = says(
        "their biases; default: as the block's", default=None, per_layer=True,
        needs=(_INNER_NORMS, Needs(lambda c: c.qk_norm_type in NORMS_WITH_BIAS,
            f"qk_norm_type in {NORMS_WITH_BIAS}")), fills=lambda c: c.norm_bias, unplanted="as the block's")
    qk_norm_after_rope: bool = says(
        "whether they follow the rotation", default=False, per_layer=True,
        needs=(_INNER_NORMS, Needs(lambda c: not _latent(c) and ROTATES.holds(c),
            "a qk_norm and layers that rotate")),
        wrong=(WrongValue("query norm on the other side of the rotation",
            lambda c: {"qk_norm_after_rope": not c.qk_norm_after_rope},
            lambda c: rotates(c) and not c.qk_norm_type.endswith("nonparametric")),))
    attention_multiplier: float | int | None = says(
        "factor on query-key products; default `head_dim ** -0.5`", default=None, per_layer=True,
        within=POSITIVE, means=_scale,
        wrong=(WrongValue("attention scale changed", lambda c: {"attention_multiplier": _scale(c) * 1.1}),))
    scale_attn_by_inverse_layer_idx: bool = says(
        "divide it by the layer's number, from 1 on (GPT-2)", default=False, per_layer=True,
        wrong=(WrongValue("layer number left out of the attention scale",
            lambda c: {"scale_attn_by_inverse_layer_idx": False},
            lambda c: c.scale_attn_by_inverse_layer_idx and c.num_hidden_layers > 1),))
    attention_score_dtype: Literal["model", "float32"] = says(
        "of the products of queries and keys (eager attention); sinks stay in float32 with it",
        default="model", unplanted="roundings of single layers are compared")
    attention_softmax_dtype: Literal["model", "float32"] = says(
        "of their softmax, which is `model` in any layer with sinks", default="float32", per_layer=True,
        needs=(Needs(lambda c: not set(c.layer_types) <= set(c.attention_sink_layer_types or ()),
            "a layer without sinks (attention_sink_layer_types)"),),
        unplanted="roundings of single layers are compared")
    attn_logit_softcapping: float | int | None = says(
        "scores become `c * tanh(scores / c)`", default=None, within=POSITIVE,
        wrong=(dropped("attention softcap dropped", "attn_logit_softcapping", None),))
    attention_value_multiplier: float | int = says(
        "factor on the values", default=1.0, per_layer=True, needs=(_GROUPED,),
        wrong=(dropped("value multiplier dropped", "attention_value_multiplier", 1.0),))
    attention_sink_layer_types: list[str] | None = says(
        "kinds of layers whose heads may attend to nothing", default=None, needs=(_SINKS,),
        wrong=(dropped("attention sinks dropped", "attention_sink_layer_types", None),))
    attention_sink_form: Literal["softmax_entry", "output_share"] = says(
        "how: by one more entry of the softmax (GPT-OSS), or by multiplying the mixed values by what "
            "that leaves (Granite), which rounds otherwise", default="softmax_entry", needs=(_SINKS,),
        unplanted="the same in exact arithmetic")
    attention_output_gate: Literal["none", "sigmoid", "softplus", "softplus_per_head"] = says(
        "what turns a projection of the input into a factor on the mixed values", default="none",
        needs=(_GROUPED,),
        wrong=(dropped("output gate dropped", "attention_output_gate", "none"),))
    layer_types: Filled[list[str]] = says(
        "`full_attention` or `sliding_attention` for each layer; default: sliding everywhere when "
            "`sliding_window` is given, else full", default=None,
        fills=lambda c: [KINDS[c.sliding_window is not None]] * c.num_hidden_layers,
        unplanted="as the window's")
    sliding_window: int | None = says(
        "tokens that a sliding layer sees, itself included", default=None, within=between(2, MOST),
        needs=(Needs(lambda c: "sliding_attention" in c.layer_types, "'sliding_attention' in layer_types"),),
        small=lambda window: None if window is None else SMALL_WINDOW,
        wrong=(WrongValue("sliding window dropped", lambda c: {"sliding_window": 10**6}),
            WrongValue("sliding window one longer", lambda c: {"sliding_window": c.sliding_window + 1}),))
    is_causal: bool = says(
        "False lets every token see the whole sequence (for encoders; no causal head then)", default=True,
        live=True, unplanted="no causal head without")


def _divided(config: Any) -> int:
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not a multiple of num_attention_heads="
            f"{config.num_attention_heads}: give head_dim."
        )
    return int(config.hidden_size // config.num_attention_heads)


def attention_problems(config: Any) -> Iterator[str]:
    """What attention may not say together."""
    if config.num_key_value_heads and config.num_attention_heads % config.num_key_value_heads:
        yield (
            f"num_attention_heads={config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads={config.num_key_value_heads}"
        )
    for name in ("layer_types", "attention_sink_layer_types"):
        if unknown := sorted(set(getattr(config, name) or ()) - set(KINDS)):
            yield f"{name} has {unknown}; Moeba knows {sorted(KINDS)}"
    if "sliding_attention" in config.layer_types and config.sliding_window is None:
        yield "layer_types has 'sliding_attention' but sliding_window=None"
    latent = _latent(config)
    for name in ("kv_lora_rank", "qk_rope_head_dim"):
        if latent and getattr(config, name) is None:
            yield f"attention_type='latent' needs {name} (got None)"
    if latent and config.kv_lora_rank is not None and config.qk_rope_head_dim is not None:
        yield from _latent_problems(config)


def _latent_problems(config: Any) -> Iterator[str]:
    if not 0 < config.qk_rope_head_dim <= config.head_dim or config.qk_rope_head_dim % 2:
        yield (
            f"qk_rope_head_dim={config.qk_rope_head_dim} must be even and part of head_dim={config.head_dim}"
        )
    if config.num_key_value_heads != config.num_attention_heads:
        yield "attention_type='latent' has one key/value head a query head"
    if config.position_embedding_type != "rope":
        yield f"attention_type='latent' needs position_embedding_type='rope', not '{config.position_embedding_type}'"
