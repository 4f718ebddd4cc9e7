"""Seed-OSS: Llama with biases on queries, keys and values, and dropout on both branches (ByteDance 2025)."""

from ..config_rows import Pair, pairs
from ..family import Family
from .shared.fields import SIZES, SLICED
from .shared.tensors import LLAMA_TENSORS

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
        SLICED,
    ),
    rows=LLAMA_TENSORS,
)
