"""Helium: Llama with norms weighted in float32 and neighbouring entries rotated together (Kyutai 2025)."""

from typing import Any

from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from .shared.fields import SIZES, without
from .shared.tensors import INTERLEAVED, INTERLEAVED_LLAMA_TENSORS


def _head_dim(native: Any) -> dict[str, Any]:
    width = native["num_attention_heads"] * native["head_dim"]
    if width != native["hidden_size"]:
        raise ValueError(
            f"head_dim={native['head_dim']} gives heads of {width} entries together, not hidden_size="
            f"{native['hidden_size']}: the output projection of the stock model is square"
        )
    return {"head_dim": native["head_dim"]}


FAMILY = Family(
    model_type="helium",
    architecture="HeliumForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim"),
        *pairs("attention_bias", "mlp_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        Computed(("head_dim",), _head_dim, lambda config: {"head_dim": config.head_dim}),
        Fixed("norm_type", "rmsnorm_float32"),
        Fixed("attention_output_bias", False),
    ),
    rows=INTERLEAVED_LLAMA_TENSORS,
    reordered=INTERLEAVED,
)
