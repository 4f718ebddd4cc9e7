"""CTRL: fixed waves for positions, scaled embeddings, a biased head (Keskar et al. 2019)."""

from ..config_rows import Computed, Fixed, Only, Pair
from ..family import Family
from ..rows import linear, renamed
from .shared.fields import CLASSIC, TRAINED_PADDING
from .shared.gpt_blocks import GPT_BLOCK, GPT_SIZES
from .shared.tensors import LAYER, linears

FAMILY = Family(
    model_type="ctrl",
    architecture="CTRLLMHeadModel",
    kind="dense",
    config_rows=(
        *GPT_SIZES,
        Computed(
            ("n_embd",),
            lambda native: {
                "hidden_size": native["n_embd"],
                "embedding_multiplier": native["n_embd"] ** 0.5,
            },
            lambda config: {"n_embd": config.hidden_size},
        ),
        Pair("dff", "intermediate_size"),
        Only("layer_norm_epsilon", 1e-6, "the stock blocks always have 1e-6, only the last norm reads it"),
        Fixed("norm_eps", 1e-6),
        Fixed("hidden_act", "relu"),
        Fixed("position_embedding_type", "sinusoidal"),
        Fixed("lm_head_bias", True),
        *CLASSIC,
        TRAINED_PADDING,
    ),
    rows=(
        renamed("transformer.w.weight", "model.embed_tokens.weight"),
        *linear("transformer.layernorm", "model.norm"),
        *linear("lm_head", "lm_head"),
        *linears(GPT_BLOCK, LAYER, input_layernorm="layernorm1", post_attention_layernorm="layernorm2"),
        *linears(
            f"{GPT_BLOCK}.multi_head_attention",
            f"{LAYER}.self_attn",
            q_proj="Wq",
            k_proj="Wk",
            v_proj="Wv",
            o_proj="dense",
        ),
        *linears(f"{GPT_BLOCK}.ffn", f"{LAYER}.mlp", up_proj="0", down_proj="2"),
    ),
    base_prefix="transformer.",
)
