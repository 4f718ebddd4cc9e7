"""Published configs made small: sizes shrink in proportion, everything else stays as it is in the file."""

from __future__ import annotations

import copy
from typing import Any

LAYERS, VOCAB, EXPERTS, CONTEXT = 6, 96, 8, 64
HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "attention_heads",
    "swa_num_attention_heads",
)
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
# MiMo's sliding layers have heads of their own: as many and as wide, with twice the keys, and narrow values.
SLIDING = {"swa_head_dim": "head_dim", "v_head_dim": 8, "swa_v_head_dim": 8}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "n_embed", "d_model")
# The width of a feed-forward and of its experts, in other words.
INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "experts_per_token", "moe_k", "moe_topk")
TOKENS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "eod_token_id",
    "decoder_start_token_id",
)
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}


def shrink(published: dict[str, Any]) -> dict[str, Any]:
    """A config.json of a small model of the same kind."""
    raw = copy.deepcopy(published)
    _shrink_layers(raw)
    _shrink_heads(raw, published)
    _shrink_experts(raw)
    raw["vocab_size"] = VOCAB
    for name in TOKENS:
        raw[name] = _small_ids(raw[name]) if name in raw else None
        if raw[name] is None and name not in published:
            del raw[name]
    if "n_positions" in raw:
        raw |= {name: CONTEXT for name in ("n_positions", "n_ctx") if name in raw}
    elif not any("rope" in name or "rotary" in name for name in raw) and "max_position_embeddings" in raw:
        raw["max_position_embeddings"] = CONTEXT
    if "max_seq_len" in raw:
        raw["max_seq_len"] = CONTEXT
    return raw


def _name(raw: dict[str, Any], names: tuple[str, ...]) -> str:
    return next(name for name in names if name in raw)


def _small_ids(given: Any) -> Any:
    if isinstance(given, list):
        return [_small_ids(item) for item in given]
    return given if given is None or given < VOCAB - 16 else VOCAB - 16 + given % 16


def _shrink_layers(raw: dict[str, Any]) -> None:
    name = _name(raw, LAYER_COUNTS)
    layers, raw[name] = raw[name], min(raw[name], LAYERS)
    for key, value in raw.items():
        if isinstance(value, list) and len(value) == layers:
            raw[key] = value[:LAYERS]
    if "moe_layer_end_index" in raw:
        raw["moe_layer_end_index"] = LAYERS - 1
    if "attention_types" in raw:
        raw["attention_types"] = [[kinds, LAYERS // len(kinds)] for kinds, _ in raw["attention_types"]]


def _shrink_heads(raw: dict[str, Any], published: dict[str, Any]) -> None:
    width, heads = _name(raw, WIDTHS), _name(raw, HEADS)
    key_heads = next((name for name in KEY_HEADS if raw.get(name)), None)
    groups = (
        1
        if key_heads is None
        else min(published[heads] // published[key_heads], 4 if published[key_heads] == 1 else 2)
    )
    raw[heads] = 4
    if key_heads is not None:
        raw[key_heads] = 4 // groups
    usual = published[width] // published[heads]
    given = raw.get("head_dim") or usual
    factor = raw.get("rotary_pct") or raw.get("partial_rotary_factor") or 1.0
    if "rotary_dim" in raw:
        factor = raw["rotary_dim"] / given
    small = next(size for size in (16, 20, 24, 40) if int(size * factor) % 2 == 0 and int(size * factor))
    for name in ("head_dim", "attention_head_dim"):
        if raw.get(name):
            raw[name] = small
    if "rotary_dim" in raw:
        raw["rotary_dim"] = int(small * factor)
    raw[width] = 4 * (small if given == usual or "qk_nope_head_dim" in raw else small + 2)
    if "swa_head_dim" in raw:
        raw |= {name: raw.get(size, size) for name, size in SLIDING.items()}
        raw |= {
            "swa_num_attention_heads": raw[heads],
            "swa_num_key_value_heads": 2 * raw["num_key_value_heads"],
        }
    if "word_embed_proj_dim" in raw:
        raw["word_embed_proj_dim"] = (
            raw[width] if published["word_embed_proj_dim"] == published[width] else 24
        )
    if raw.get("qk_nope_head_dim"):
        raw |= {name: size for name, size in LATENT.items() if raw.get(name)}
    for name in INNER:
        if raw.get(name):
            raw[name] = 4 * raw[width] if published[name] == 4 * published[width] else 44
    rope = raw.get("rope_scaling") or {}
    for name in ("short_factor", "long_factor"):
        if name in rope:
            rope[name] = rope[name][: int(small * factor) // 2]


def _shrink_experts(raw: dict[str, Any]) -> None:
    grouped = (raw.get("n_group") or 1) > 1
    for name in EXPERT_COUNTS:
        if raw.get(name):
            raw[name] = 2 * raw["n_group"] if grouped else EXPERTS
    for name in CHOSEN:
        if name in raw:
            small = [min(item, 3) for item in raw[name]] if isinstance(raw[name], list) else min(raw[name], 3)
            raw[name] = small
    shared, routed = raw.get("shared_expert_intermediate_size"), raw.get("moe_intermediate_size")
    if routed:
        raw["moe_intermediate_size"] = [44] * len(routed) if isinstance(routed, list) else 12
    if shared:
        raw["shared_expert_intermediate_size"] = 12 * (shared // routed)
