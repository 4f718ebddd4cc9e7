"""What a single field of a MoebaConfig may be: numbers that are finite and in their range, and known names.

Whatever is said here of a field holds whether or not other fields let it act.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..library.upstream import ACT2FN
from .messages import nearest, short

# Beyond these no model was ever built; a list that long, or a table, would fill the memory before anything is said.
MOST_LAYERS, MOST_EXPERTS, MOST_LABELS, MOST = 100_000, 65_536, 10_000_000, 2**31 - 1
LARGEST = 1e18  # float32 still holds its square
SMALLEST = 1e-18  # and its inverse's

# The least and the most of each whole number. None, where a field may be that, is always in range.
COUNTS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(
        (
            "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
            "v_head_dim", "embedding_size", "max_position_embeddings", "moe_intermediate_size", "q_lora_rank",
            "kv_lora_rank", "qk_rope_head_dim", "relative_attention_max_distance",
        ),
        (1, MOST),
    ),
    **dict.fromkeys(("shared_expert_intermediate_size", "position_offset"), (0, MOST)),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group"), (1, MOST_EXPERTS)),
    "num_experts": (0, MOST_EXPERTS),
    "num_labels": (0, MOST_LABELS),
    "router_jitter_draws": (1, 64),
    "num_hidden_layers": (0, MOST_LAYERS),
    "relative_attention_num_buckets": (2, MOST),
    # The cache of a window of one token keeps all of them (transformers' `DynamicCache`), and a token that sees itself
    # alone needs no attention.
    "sliding_window": (2, MOST),
}  # fmt: skip
POSITIVE = (
    "norm_eps", "qk_norm_eps", "attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping",
    "clip_qkv", "swiglu_limit", "attention_multiplier", "alibi_bias_max", "routed_scaling_factor",
)  # fmt: skip
NOT_NEGATIVE = (
    "norm_topk_eps", "norm_topk_min", "router_aux_loss_coef", "router_z_loss_coef", "initializer_range",
    "sparsemixer_eps",
)  # fmt: skip
NOT_ZERO = ("logits_scaling", "logit_scale", "embedding_multiplier", "alibi_multiplier")
# Added to what is divided by, so that the least that there is does no harm.
TINY = ("norm_eps", "qk_norm_eps")
FRACTIONS = (
    "attention_dropout", "hidden_dropout", "embedding_dropout", "classifier_dropout", "router_jitter_noise",
)  # fmt: skip
# What attention, routers and experts read of their own layer's config; all else is read for all layers at once.
PER_LAYER = frozenset(
    (
        "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank",
        "attention_bias", "attention_output_bias", "attention_dropout", "attention_multiplier",
        "attention_value_multiplier", "attention_softmax_dtype", "clip_qkv", "scale_attn_by_inverse_layer_idx",
        "qk_norm_type", "qk_norm_eps", "qk_norm_bias", "qk_norm_after_rope", "intermediate_size", "num_experts",
        "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "n_group", "topk_group",
        "group_scoring", "group_mask", "norm_topk_prob", "norm_topk_eps", "norm_topk_min", "topk_sorted",
        "routed_scaling_factor", "router_bias", "router_logit_softcapping", "router_matmul_dtype",
        "router_score_dtype", "router_weight_dtype",
    )
)  # fmt: skip
# Fields of the library's own base class, whose types it does not check.
INHERITED: dict[str, type] = {
    "id2label": dict, "label2id": dict, "output_hidden_states": bool, "return_dict": bool, "problem_type": str,
    "architectures": list, "is_encoder_decoder": bool, "chunk_size_feed_forward": int, "transformers_version": str,
    "num_labels": int, "per_layer_config": Mapping,
}  # fmt: skip
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def out_of_range(values: Mapping[str, Any]) -> Iterator[str]:
    """Each field of a config whose value alone is wrong, as one sentence.

    Args:
        values: fields by name; those that are None say nothing, those that are missing are not asked for.
    """
    for name, kind in INHERITED.items():
        value = values.get(name)
        if value is not None and not isinstance(value, kind):
            yield f"{name}={short(value)} must be of type {kind.__name__.lower()}"
    if not all(isinstance(name, str) for name in values.get("architectures") or ()):
        yield f"architectures={short(values['architectures'])} must hold names of classes"
    if (problem := values.get("problem_type")) is not None and problem not in PROBLEMS:
        yield f"problem_type={short(problem)} is none of {', '.join(PROBLEMS)}"
    if values.get("is_encoder_decoder"):
        yield "is_encoder_decoder=True: Moeba has no encoder beside the decoder"
    for name, value in values.items():
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            yield f"{name}={short(value)} must be a finite number of at most {LARGEST:g}: float32 holds its square"
    for index, sizes in (values.get("per_layer_config") or {}).items():
        if not isinstance(sizes, Mapping):
            yield f"per_layer_config={short({index: sizes})} must hold a dict of fields for each layer"
            continue
        for name, value in sizes.items():
            if name not in PER_LAYER and value != values.get(name):
                yield f"per_layer_config has {name}={short(value)} for layer {index}: only all layers together have one"
    for name, (least, most) in COUNTS.items():
        value = values.get(name)
        if value is not None and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            yield f"{name}={short(value)} must be {bound}"
    for name in POSITIVE:
        if (value := values.get(name)) is not None and value <= 0:
            yield f"{name}={value} must be positive"
    for name in NOT_NEGATIVE:
        if (value := values.get(name)) is not None and value < 0:
            yield f"{name}={value} must not be negative"
    for name in NOT_ZERO:
        if values.get(name) == 0:
            yield f"{name}=0 leaves nothing of the model's function"
    for name in (*POSITIVE, *NOT_ZERO):
        if name not in TINY and (value := values.get(name)) and abs(value) < SMALLEST:
            yield f"{name}={value} must be of a size of {SMALLEST:g} or more: float32 holds its inverse's square"
    for name in FRACTIONS:
        if (value := values.get(name)) is not None and not 0 <= value < 1:
            yield f"{name}={value} must be at least 0 and below 1"
    if (act := values.get("hidden_act")) is not None and act not in ACT2FN:
        yield f"hidden_act={short(act)} is no activation of transformers (nearest: '{nearest(act, ACT2FN)}')"


def token_ids_out_of_range(config: Any) -> Iterator[str]:
    """Special tokens that no embedding has. Others outside the vocabulary just never occur, as in stock models."""
    vocab, pad = config.vocab_size, config.pad_token_id
    # Counted from the end where negative, as in PyTorch; published configs say -1 for none.
    if pad is not None and not -vocab <= pad < vocab:
        yield f"pad_token_id={pad} must be below vocab_size={vocab}, as the padding has an embedding"
    for name in ("bos_token_id", "eos_token_id"):
        ids = getattr(config, name)
        for token in ids if isinstance(ids, list) else [ids]:
            if token is not None and not -1 <= token <= MOST:
                yield f"{name}={ids} is no token id"


def dtype_problems(dtype: Any, torch_dtype: Any) -> Iterator[str]:
    """What is wrong with a model's dtype under its two names."""
    found = []
    for value in (dtype, torch_dtype):
        if value is None:
            continue
        found.append(getattr(torch, str(value).removeprefix("torch."), None))
        if not isinstance(found[-1], torch.dtype) or not found[-1].is_floating_point:
            yield f"dtype={value!r} is no floating-point dtype of torch"
    if len(set(found)) > 1:
        yield f"torch_dtype={torch_dtype} contradicts dtype={dtype}: they are one field"


def is_number(value: Any) -> bool:
    """Whether a value out of a dict is a finite number whose square, and its inverse's, are numbers in float32."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value == 0 or SMALLEST <= abs(value) <= LARGEST
