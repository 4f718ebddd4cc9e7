"""Aria's decoder: Llama's attention, routed experts beside shared ones in every layer (Rhymes AI 2024)."""

from ..config_rows import Fixed, Only, Pair, pairs
from ..family import Family
from ..rows import SwapLast, renamed
from .shared.experts import shared_experts_by_count
from .shared.fields import ATTENTION_BIAS, SIZES, SLICED, without
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, PRE_NORMS, shared_expert

EXPERTS = f"{LAYER}.mlp.experts"

FAMILY = Family(
    model_type="aria_text",
    architecture="AriaTextForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "intermediate_size", "hidden_act"),
        *pairs("mlp_bias"),
        Only("hidden_act", "silu", "the stock model gives it to the shared experts alone"),
        shared_experts_by_count("intermediate_size", "moe_num_shared_experts"),
        Pair("moe_num_experts", "num_experts"),
        Pair("moe_topk", "num_experts_per_tok"),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        SLICED,
        Fixed("router_type", "topk_softmax"),
        Fixed("router_loss", "none"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *PRE_NORMS,
        renamed(f"{LAYER}.mlp.router.weight", f"{LAYER}.mlp.gate.weight"),
        renamed(f"{EXPERTS}.fc1.weight", f"{EXPERTS}.gate_up_proj", SwapLast()),
        renamed(f"{EXPERTS}.fc2.weight", f"{EXPERTS}.down_proj", SwapLast()),
        *shared_expert("shared_experts"),
    ),
    reordered="stock multiplies by experts' matrices that lie transposed",
)
