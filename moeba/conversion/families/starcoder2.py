"""StarCoder2: Llama's attention between layer norms, a plain feed-forward, biases (Lozhkov et al. 2024)."""

from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from ..rows import linear, same
from .shared_fields import SIZES, UNIFORM_WINDOW, UNLISTED_HEAD_DIM, without
from .shared_tensors import ATTENTION, LAYER, PRE_LAYER_NORMS, linears

FAMILY = Family(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim"),
        UNLISTED_HEAD_DIM,
        *pairs("embedding_dropout"),
        Pair("norm_epsilon", "norm_eps"),
        Pair("residual_dropout", "hidden_dropout"),
        Computed(
            ("use_bias",),
            lambda native: dict.fromkeys(
                ("attention_bias", "attention_output_bias", "mlp_bias"), native["use_bias"]
            ),
            lambda config: {"use_bias": config.attention_bias},
        ),
        UNIFORM_WINDOW,
        Fixed("norm_type", "layernorm"),
        Fixed("feed_forward_type", "mlp"),
    ),
    rows=(
        *same("model.embed_tokens.weight", "lm_head.weight"),
        *linear("model.norm", "model.norm"),
        *PRE_LAYER_NORMS,
        *ATTENTION,
        *linears(f"{LAYER}.mlp", f"{LAYER}.mlp", up_proj="c_fc", down_proj="c_proj"),
    ),
)
