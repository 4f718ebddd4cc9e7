"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 whose heads share one key and value (Ben Allal et al. 2023)."""

from typing import Any

from ..config_rows import Computed, Fixed, Inert
from ..family import Family
from ..rows import SplitGroups
from .shared.gpt_blocks import GPT2_EMBEDDINGS_AND_NORMS, GPT2_FIELDS, GPT2_MASKS, gpt2_branches
from .shared.tensors import ONE_PRODUCT


def _kv_heads(native: Any) -> dict[str, Any]:
    return {"num_key_value_heads": 1 if native["multi_query"] else native["n_head"]}


FAMILY = Family(
    model_type="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    kind="dense",
    config_rows=(
        *GPT2_FIELDS,
        Computed(
            ("multi_query",),
            _kv_heads,
            lambda config: {"multi_query": config.num_key_value_heads == 1},
        ),
        Inert("attention_softmax_in_fp32", "the stock code always takes the softmax in float32"),
        Inert("scale_attention_softmax_in_fp32", "the stock code does not read it"),
        Fixed("position_embedding_type", "learned"),
    ),
    rows=(*GPT2_EMBEDDINGS_AND_NORMS, *gpt2_branches(SplitGroups())),
    dropped=GPT2_MASKS,
    base_prefix="transformer.",
    reordered=ONE_PRODUCT,
)
