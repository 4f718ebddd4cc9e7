"""Seed-OSS: Llama with biases on queries, keys and values, and dropout on both branches (ByteDance 2025)."""

from ..config_rows import Inert, Pair, pairs
from ..family import Family
from .shared_fields import SIZES
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS

FAMILY = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES,
        *pairs("attention_bias", "mlp_bias"),
        Pair("attention_out_bias", "attention_output_bias"),
        Pair("residual_dropout", "hidden_dropout"),
        Pair("rms_norm_eps", "norm_eps"),
        Inert("pretraining_tp", "a way to slice the products of one training setup"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)
