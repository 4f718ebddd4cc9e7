"""OPT: learned positions that count real tokens; a norm before each branch, or after it (Zhang et al. 2022)."""

from dataclasses import replace
from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Only, Pair, pairs
from ..family import Family
from ..rows import Row, linear, renamed
from .shared.fields import every_bias
from .shared.gpt_blocks import fairseq_branches
from .shared.tensors import LAYER

BLOCK = "model.decoder.layers.{layer}"


def _norms(native: Any) -> dict[str, Any]:
    before, affine = native["do_layer_norm_before"], native["layer_norm_elementwise_affine"]
    return {
        "block_order": "pre_norm" if before else "post_norm",
        "final_norm": before and not native["_remove_final_layer_norm"],
        "norm_type": "layernorm" if affine else "layernorm_nonparametric",
    }


def _norms_back(config: MoebaConfig) -> dict[str, Any]:
    before = config.block_order == "pre_norm"
    return {
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "layer_norm_elementwise_affine": config.norm_type == "layernorm",
    }


def _block_norm(theirs: str, before: str, after: str) -> tuple[Row, ...]:
    """A norm of a block, by our name where it stands before its branch, and where it stands after it."""
    return tuple(
        replace(row, when=when)
        for when, ours in ((_is_pre_norm, before), (_is_post_norm, after))
        for row in linear(f"{BLOCK}.{theirs}", f"{LAYER}.{ours}")
    )


def _is_pre_norm(config: MoebaConfig) -> bool:
    return config.block_order == "pre_norm"


def _is_post_norm(config: MoebaConfig) -> bool:
    return config.block_order == "post_norm"


FAMILY = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    kind="dense",
    rounds_otherwise=True,
    config_rows=(
        *pairs("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
        *pairs("attention_dropout"),
        Pair("ffn_dim", "intermediate_size"),
        Pair("word_embed_proj_dim", "embedding_size"),
        Pair("activation_function", "hidden_act"),
        Pair("dropout", "hidden_dropout"),
        Pair("init_std", "initializer_range"),
        Computed(
            ("do_layer_norm_before", "_remove_final_layer_norm", "layer_norm_elementwise_affine"),
            _norms,
            _norms_back,
        ),
        every_bias("enable_bias"),
        Only("layerdrop", 0.0, "training skips no layers"),
        Fixed("norm_eps", 1e-5),
        Fixed("feed_forward_type", "mlp"),
        Fixed("position_embedding_type", "learned"),
        Fixed("position_offset", 2),
        Fixed("positions_from_attention_mask", True),
    ),
    rows=(
        renamed("model.decoder.embed_tokens.weight", "model.embed_tokens.weight"),
        renamed("model.decoder.embed_positions.weight", "model.embed_positions.weight"),
        renamed("model.decoder.project_in.weight", "model.project_in.weight"),
        renamed("model.decoder.project_out.weight", "model.project_out.weight"),
        renamed("lm_head.weight", "lm_head.weight"),
        *linear("model.decoder.final_layer_norm", "model.norm"),
        *_block_norm("self_attn_layer_norm", "input_layernorm", "post_attention_layernorm"),
        *_block_norm("final_layer_norm", "post_attention_layernorm", "post_feedforward_layernorm"),
        *fairseq_branches(BLOCK),
    ),
    reordered="stock scales the queries, not their products with the keys",
)
