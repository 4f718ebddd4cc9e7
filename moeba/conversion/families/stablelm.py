"""StableLM: Llama's block with layer norms, a quarter of each head rotated, a norm for each head (Bellagamba 2024)."""

from ..config_rows import Fixed, Only, Pair
from ..family import Family
from ..rows import Row, StackExperts
from .shared.fields import SIZES, switch, without
from .shared.rope import PARTIAL_ROPE, rotated_share
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_LAYER_NORMS, GATED_MLP, LAYER

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
        switch("qk_layernorm", "qk_norm", on="per_head", off="none"),
        switch("use_parallel_residual", "block_order", on="parallel_stream_first", off="pre_norm"),
        Only("hidden_dropout", 0.0, "it would drop the feed-forward's output, but not the attention's"),
        Fixed("norm_type", "layernorm"),
        Fixed("qk_norm_bias", False),
        Fixed("attention_output_bias", False),
    ),
    rows=(
        *EMBEDDINGS_AND_LAYER_NORMS,
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
