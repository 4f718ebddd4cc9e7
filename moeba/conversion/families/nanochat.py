"""nanochat: norms without weights, also on embeddings, queries and keys; rope that turns backwards (Karpathy 2025)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from ..rows import NegateSecondHalves, linear, same
from .shared.fields import ATTENTION_BIAS, SIZES_HEAD_DIM_UNLISTED
from .shared.tensors import LAYER

ATTENTION = f"{LAYER}.self_attn"

FAMILY = Family(
    model_type="nanochat",
    architecture="NanoChatForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES_HEAD_DIM_UNLISTED,
        *pairs("final_logit_softcapping"),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        Fixed("norm_type", "rmsnorm_nonparametric"),
        Fixed("embedding_norm", True),
        Fixed("qk_norm", "head"),
        Fixed("qk_norm_after_rope", True),
        Fixed("feed_forward_type", "mlp"),
    ),
    rows=(
        *same("model.embed_tokens.weight", "lm_head.weight"),
        *linear(f"{ATTENTION}.q_proj", f"{ATTENTION}.q_proj", NegateSecondHalves()),
        *linear(f"{ATTENTION}.k_proj", f"{ATTENTION}.k_proj", NegateSecondHalves()),
        *linear(f"{ATTENTION}.v_proj", f"{ATTENTION}.v_proj"),
        *linear(f"{ATTENTION}.o_proj", f"{ATTENTION}.o_proj"),
        *linear(f"{LAYER}.mlp.fc1", f"{LAYER}.mlp.up_proj"),
        *linear(f"{LAYER}.mlp.fc2", f"{LAYER}.mlp.down_proj"),
    ),
)
