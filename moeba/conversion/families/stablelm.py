"""StableLM: Llama's block with layer norms, a quarter of each head rotated, a norm for each head (Bellagamba 2024)."""

from ..config_rows import Computed, Fixed, Only, Pair
from ..family import Family
from ..rows import Row, StackExperts, linear, same
from .shared_fields import PARTIAL_ROPE, SIZES, rotated_share, without
from .shared_tensors import ATTENTION, GATED_MLP, LAYER, PRE_LAYER_NORMS

FAMILY = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim", "rope_parameters"),
        PARTIAL_ROPE,
        rotated_share(),
        Pair("layer_norm_eps", "norm_eps"),
        Pair("use_qkv_bias", "attention_bias"),
        Computed(
            ("qk_layernorm",),
            lambda native: {"qk_norm": "per_head" if native["qk_layernorm"] else "none"},
            lambda config: {"qk_layernorm": config.qk_norm == "per_head"},
        ),
        Computed(
            ("use_parallel_residual",),
            lambda native: {
                "block_order": "parallel_stream_first" if native["use_parallel_residual"] else "pre_norm"
            },
            lambda config: {"use_parallel_residual": config.block_order == "parallel_stream_first"},
        ),
        Only("hidden_dropout", 0.0, "it would drop the feed-forward's output, but not the attention's"),
        Fixed("norm_type", "layernorm"),
        Fixed("qk_norm_bias", False),
        Fixed("attention_output_bias", False),
    ),
    rows=(
        *same("model.embed_tokens.weight", "lm_head.weight"),
        *linear("model.norm", "model.norm"),
        *PRE_LAYER_NORMS,
        *ATTENTION,
        *(
            Row(
                (f"{LAYER}.self_attn.{part}_layernorm.norms.{{{head}}}.weight",),
                (f"{LAYER}.self_attn.{part}_norm.weight",),
                (StackExperts(1),),
            )
            for part, head in (("q", "head"), ("k", "kv_head"))
        ),
        *GATED_MLP,
    ),
)
