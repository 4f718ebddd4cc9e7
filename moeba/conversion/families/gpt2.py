"""GPT-2: learned positions, layer norms, fused and transposed projections (Radford et al. 2019)."""

from ..config_rows import Fixed, Inert, Stated, pairs
from ..family import Family
from ..rows import Split, Transpose
from .shared.gpt_blocks import GPT2_EMBEDDINGS_AND_NORMS, GPT2_FIELDS, GPT2_MASKS, SUMMARY, gpt2_branches
from .shared.tensors import qkv_sizes

FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    kind="dense",
    config_rows=(
        *GPT2_FIELDS,
        *SUMMARY,
        *pairs("scale_attn_by_inverse_layer_idx"),
        Inert("reorder_and_upcast_attn", "another order of the same product, in float32"),
        Fixed("position_embedding_type", "learned"),
        Stated(
            "n_ctx",
            lambda config: config.max_position_embeddings,
            "llama.cpp's converter fails where it is not said",
            required=False,
        ),
    ),
    rows=(*GPT2_EMBEDDINGS_AND_NORMS, *gpt2_branches(Split(qkv_sizes), Transpose())),
    dropped=GPT2_MASKS,
    base_prefix="transformer.",
    aliases=("gpt-sw3",),
    reordered="stock multiplies by matrices that lie transposed, with queries, keys and values in one product",
)
