"""GPT-J: attention and feed-forward side by side on one layer norm, the first channels rotated in pairs (Wang 2021)."""

from ..family import Family
from ..rows import PairsToHalves, renamed
from .shared.gpt_blocks import GPT2_MASKS, GPT_BLOCK, GPTJ_FIELDS, GPTJ_REORDERED, GPTJ_TENSORS
from .shared.tensors import LAYER

FAMILY = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    kind="dense",
    config_rows=GPTJ_FIELDS,
    rows=(
        *GPTJ_TENSORS,
        *(renamed(f"{GPT_BLOCK}.attn.{part}.weight", f"{LAYER}.self_attn.{part}.weight", *operations)
          for part, operations in (("q_proj", (PairsToHalves(),)), ("k_proj", (PairsToHalves(),)), ("v_proj", ()))),
    ),
    dropped=GPT2_MASKS,
    base_prefix="transformer.",
    reordered=GPTJ_REORDERED,
)  # fmt: skip
