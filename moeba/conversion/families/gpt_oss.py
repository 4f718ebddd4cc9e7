"""GPT-OSS: attention sinks, biases everywhere, and experts with a clamped gate (OpenAI 2025)."""

from ..config_rows import Fixed, Inert, Pair, Stated, pairs
from ..family import Family
from ..rows import SwapLast, UnpairGateUp, linear, renamed, same
from .shared.experts import LOCAL_EXPERTS, ROUTER_LOSS
from .shared.fields import ATTENTION_BIAS, SIZES, without
from .shared.layer_kinds import LISTED_WINDOW
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, PRE_NORMS

EXPERTS = f"{LAYER}.mlp.experts"

FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    kind="moe",
    rounds_otherwise=True,
    config_rows=(
        *without(SIZES, "intermediate_size", "hidden_act"),
        *pairs("num_experts_per_tok", "swiglu_alpha", "swiglu_limit"),
        *ROUTER_LOSS,
        *LOCAL_EXPERTS,
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        LISTED_WINDOW,
        Inert("hidden_act", "the experts have an activation of their own"),
        Fixed("norm_type", "rmsnorm_float32"),
        Fixed("attention_sink_layer_types", ["full_attention", "sliding_attention"]),
        Fixed("feed_forward_type", "clamped_gated"),
        Fixed("expert_bias", True),
        Fixed("router_type", "topk_softmax"),
        Fixed("router_bias", True),
        Stated(
            "experts_per_token", lambda config: config.num_experts_per_tok, "the name in OpenAI's own code"
        ),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *PRE_NORMS,
        *same(f"{LAYER}.self_attn.sinks"),
        *linear(f"{LAYER}.mlp.router", f"{LAYER}.mlp.gate"),
        renamed(f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.gate_up_proj", SwapLast(), UnpairGateUp()),
        renamed(f"{EXPERTS}.gate_up_proj_bias", f"{EXPERTS}.gate_up_proj_bias", UnpairGateUp()),
        renamed(f"{EXPERTS}.down_proj", f"{EXPERTS}.down_proj", SwapLast()),
        *same(f"{EXPERTS}.down_proj_bias"),
    ),
    reordered="stock multiplies by experts' matrices that lie transposed, and adds their biases afterwards",
)
