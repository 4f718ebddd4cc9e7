"""GLM-4 of 2024: Llama's block with half of each head rotated, in neighbouring pairs (GLM team 2024)."""

from ...configuration import MoebaConfig
from ..config_rows import Fixed, Pair, Stated, pairs
from ..family import Family
from .shared_fields import PARTIAL_ROPE, SIZES, rotated_share, single_rope, without
from .shared_tensors import EMBEDDINGS_AND_HEAD, FUSED_GATED_MLP, INTERLEAVED_ATTENTION, PRE_NORMS


def _rope_ratio(config: MoebaConfig) -> float:
    return float((single_rope(config) or {}).get("rope_theta", 10_000) / 10_000)


OF_THE_AUTHORS = (
    ("rope_ratio", _rope_ratio, "the base of rotations"),
    ("layernorm_epsilon", lambda config: config.norm_eps, "the norms' epsilon"),
    ("seq_length", lambda config: config.max_position_embeddings, "the longest context"),
)

FAMILY = Family(
    model_type="glm",
    architecture="GlmForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "rope_parameters"),
        PARTIAL_ROPE,
        rotated_share(),
        *pairs("attention_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        Fixed("attention_output_bias", False),
        *(
            Stated(name, value, f"llama.cpp's converter takes {what} from it, as the authors' code does")
            for name, value, what in OF_THE_AUTHORS
        ),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *INTERLEAVED_ATTENTION, *FUSED_GATED_MLP, *PRE_NORMS),
    reordered="stock rotates neighbouring entries, whose products with the keys are added in another order",
)
