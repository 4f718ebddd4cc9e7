"""VaultGemma: Gemma 2 without the norms after each branch (Sinha et al. 2025)."""

from ..config_rows import pairs
from ..family import Family
from ..rows import renamed, same
from .shared.gemma_blocks import SINCE_GEMMA2
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, LAYER

FAMILY = Family(
    model_type="vaultgemma",
    architecture="VaultGemmaForCausalLM",
    kind="dense",
    config_rows=(*SINCE_GEMMA2, *pairs("attn_logit_softcapping")),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *GATED_MLP,
        *same(f"{LAYER}.input_layernorm.weight"),
        renamed(f"{LAYER}.pre_feedforward_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight"),
    ),
)
