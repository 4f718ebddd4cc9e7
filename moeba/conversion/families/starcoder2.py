"""StarCoder2: Llama's attention between layer norms, a plain feed-forward, biases (Lozhkov et al. 2024)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from .shared.fields import SIZES_HEAD_DIM_UNLISTED, every_bias
from .shared.layer_kinds import UNIFORM_WINDOW
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_LAYER_NORMS, LAYER, linears

FAMILY = Family(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES_HEAD_DIM_UNLISTED,
        *pairs("embedding_dropout"),
        Pair("norm_epsilon", "norm_eps"),
        Pair("residual_dropout", "hidden_dropout"),
        every_bias("use_bias"),
        UNIFORM_WINDOW,
        Fixed("norm_type", "layernorm"),
        Fixed("feed_forward_type", "mlp"),
    ),
    rows=(
        *EMBEDDINGS_AND_LAYER_NORMS,
        *ATTENTION,
        *linears(f"{LAYER}.mlp", f"{LAYER}.mlp", up_proj="c_fc", down_proj="c_proj"),
    ),
)
