# Copyright 2026 The Moeba Authors. Licensed under the Apache License, Version 2.0.
"""The shapes in which the shared model tests run: each a tiny Moeba in the form of a known kind of model."""

from moeba.configuration.configuration_moeba import MoebaConfig
from moeba.modeling import modeling_moeba

MODEL_CLASSES = (
    modeling_moeba.MoebaModel,
    modeling_moeba.MoebaForCausalLM,
    modeling_moeba.MoebaForSequenceClassification,
    modeling_moeba.MoebaForTokenClassification,
    modeling_moeba.MoebaForQuestionAnswering,
)

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

SHAPES: dict[str, dict] = {
    "llama": {"num_key_value_heads": 1},
    "gpt2": {
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "feed_forward_type": "mlp",
        "hidden_act": "gelu_new",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mixtral": {**SPARSE, "mlp_layer_types": ["sparse", "sparse"]},
    "qwen_moe": {
        **SPARSE,
        "mlp_layer_types": ["dense", "sparse"],
        "shared_expert_intermediate_size": 16,
        "shared_expert_gate": True,
        "qk_norm": "head",
    },
    "deepseek": {
        **SPARSE,
        "num_experts": 12,
        "mlp_layer_types": ["dense", "sparse"],
        "shared_expert_intermediate_size": 16,
        "scoring_func": "sigmoid",
        "router_selection_bias": True,
        "router_matmul_dtype": "float32",
        "router_weight_dtype": "float32",
        "norm_topk_eps": 1e-20,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
    },
    "gemma2": {
        "norm_type": "rmsnorm_unit_offset",
        "block_order": "sandwich_norm",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        **SPARSE,
        "mlp_layer_types": ["sparse", "sparse"],
        "feed_forward_type": "clamped_gated",
        "expert_bias": True,
        "router_type": "topk_softmax",
        "router_bias": True,
        "attention_bias": True,
        "attention_sink_layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "bloom": {
        "position_embedding_type": "alibi",
        "norm_type": "layernorm",
        "embedding_norm": True,
        "feed_forward_type": "mlp",
        "hidden_act": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "parallel": {"block_order": "parallel", "norm_type": "layernorm", "norm_bias": False, "logit_scale": 2.0},
}

# Why some of transformers' tests do not apply to some shapes. It decides by the class, Moeba by the config.
NO_EXPERTS = dict.fromkeys(
    (
        "test_output_router_logits_from_config",
        "test_eager_matches_batched_and_grouped_inference_0_fp16",
        "test_eager_matches_batched_and_grouped_inference_1_fp32",
        "test_eager_matches_batched_and_grouped_inference_2_bf16",
    ),
    "no layer has experts",
)
SKIPS: dict[str, dict[str, str]] = {
    "llama": NO_EXPERTS,
    "gpt2": NO_EXPERTS,
    "gemma2": NO_EXPERTS,
    "parallel": NO_EXPERTS,
    "gpt_oss": {
        "test_moe_parallel_plans_shard_experts": "experts with biases stay whole, as in the native class's plan"
    },
    "bloom": NO_EXPERTS,
}

# Run by default; the others are slow
DEFAULT_SHAPES = ["llama", "qwen_moe"]
SLIDING_SHAPES = ["gemma2", "gpt_oss"]


def config(shape: str, **overrides) -> MoebaConfig:
    return MoebaConfig(**{**SIZES, **SHAPES[shape], **overrides})


def causal_lm_class(shape: str) -> type:
    return modeling_moeba.MoebaForCausalLM


def one_layer(shape: str) -> dict:
    """Overrides which leave the last layer of `shape` only."""
    sizes = SHAPES[shape]
    overrides = {name: sizes[name][-1:] for name in ("layer_types", "mlp_layer_types") if name in sizes}
    if "sliding_attention" not in overrides.get("layer_types", []):
        overrides["sliding_window"] = None
    return {"num_hidden_layers": 1, **overrides}
