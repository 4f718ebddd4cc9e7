"""Ministral 3: Mistral whose queries grow with their position (Mistral AI 2025)."""

from ..config_rows import Pair
from ..family import Family
from .shared.fields import SIZES, without
from .shared.layer_kinds import UNIFORM_WINDOW
from .shared.rope import GROWING_ROPE
from .shared.tensors import LLAMA_TENSORS

FAMILY = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "rope_parameters"),
        GROWING_ROPE,
        Pair("rms_norm_eps", "norm_eps"),
        UNIFORM_WINDOW,
    ),
    rows=LLAMA_TENSORS,
)
