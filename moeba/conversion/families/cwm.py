"""CWM: Llama with a sliding window in three layers of four (Meta 2025)."""

from ..config_rows import Pair, pairs
from ..family import Family
from .shared.fields import SIZES, SLICED
from .shared.layer_kinds import LISTED_WINDOW
from .shared.tensors import LLAMA_TENSORS

FAMILY = Family(
    model_type="cwm",
    architecture="CwmForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES,
        *pairs("mlp_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        LISTED_WINDOW,
        SLICED,
    ),
    rows=LLAMA_TENSORS,
)
