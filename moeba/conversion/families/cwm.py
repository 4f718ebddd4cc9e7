"""CWM: Llama with a sliding window in three layers of four (Meta 2025)."""

from ..config_rows import Inert, Pair, pairs
from ..family import Family
from .shared_fields import LISTED_WINDOW, SIZES
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS

FAMILY = Family(
    model_type="cwm",
    architecture="CwmForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES,
        *pairs("mlp_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        LISTED_WINDOW,
        Inert("pretraining_tp", "a way to slice the products of one training setup"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)
