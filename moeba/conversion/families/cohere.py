"""Command R: both branches read one layer norm, and rope turns neighbouring channels (Cohere 2024)."""

from ..family import Family
from ..rows import PairsToHalves, renamed
from .shared.fields import switch
from .shared.llama_blocks import COHERE_FIELDS, COHERE_REORDERED, COHERE_TENSORS
from .shared.tensors import LAYER

FAMILY = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    kind="dense",
    config_rows=(
        *COHERE_FIELDS,
        switch("use_qk_norm", "qk_norm", on="per_head", off="none"),
    ),
    rows=(
        *COHERE_TENSORS,
        *(renamed(f"{LAYER}.self_attn.{norm}.weight", f"{LAYER}.self_attn.{norm}.weight", PairsToHalves(last=True))
          for norm in ("q_norm", "k_norm")),
    ),
    reordered=COHERE_REORDERED,
)  # fmt: skip
