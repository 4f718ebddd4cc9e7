"""Llama: pre-norm, rotary positions, gated feed-forward (Touvron et al. 2023)."""

from ..config_rows import Computed, Inert, Pair, pairs
from ..family import Family
from ..rows import Dropped
from .common import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS, SIZES

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES,
        *pairs("mlp_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        Computed(
            ("attention_bias",),
            lambda native: dict.fromkeys(
                ("attention_bias", "attention_output_bias"), native["attention_bias"]
            ),
            lambda config: {"attention_bias": config.attention_bias},
        ),
        Inert("pretraining_tp", "a way to slice the products of one training setup"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
    dropped=(
        Dropped(
            "model.layers.{layer}.self_attn.rotary_emb.inv_freq", "rope frequencies, computed from the config"
        ),
    ),
)
