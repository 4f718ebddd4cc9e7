"""Weight rows of usual names: embeddings, attention, norms, feed-forwards, experts."""

from __future__ import annotations

from ....configuration import MoebaConfig
from ...rows import FuseGateUp, Operation, PairsToHalves, Row, Split, StackExperts, linear, same

LAYER = "model.layers.{layer}"
ATTENTION_BLOCK, MLP = f"{LAYER}.self_attn", f"{LAYER}.mlp"

EMBEDDINGS_AND_HEAD: tuple[Row, ...] = same(
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
)


def linears(theirs: str, ours: str, *names: str, **other_names: str) -> tuple[Row, ...]:
    """Weights and biases in one block of a layer.

    Args:
        names: what is called the same on both sides.
        other_names: for each of our names, what it is called there.
    """
    their_names = {name: name for name in names} | other_names
    return tuple(
        row
        for our_name, name in their_names.items()
        for row in linear(f"{theirs}.{name}", f"{ours}.{our_name}")
    )


QKV = ("q_proj", "k_proj", "v_proj")
ATTENTION = linears(ATTENTION_BLOCK, ATTENTION_BLOCK, *QKV, "o_proj")

# Queries and keys whose neighbouring entries are rotated together.
INTERLEAVED_ATTENTION: tuple[Row, ...] = (
    *linear(f"{ATTENTION_BLOCK}.q_proj", f"{ATTENTION_BLOCK}.q_proj", PairsToHalves()),
    *linear(f"{ATTENTION_BLOCK}.k_proj", f"{ATTENTION_BLOCK}.k_proj", PairsToHalves()),
    *linears(ATTENTION_BLOCK, ATTENTION_BLOCK, "v_proj", "o_proj"),
)
# Why logits of families that have it are not bit-identical.
INTERLEAVED = "rotated entries lie in another order, in which queries and keys are summed"

# Of stock models that mask scores in a way of their own.
PADDED_ROWS = (
    "rows of left padding hold other values, which no real token reads; only a loss that does not mask the first real "
    "token counts what the last of them predicts"
)
# Why logits of families with `fused_qkv` are not bit-identical.
ONE_PRODUCT = "stock computes queries, keys and values in one product, which a processor may round otherwise"


def fused_qkv(
    theirs: str, *operations: Operation, parts: tuple[str, ...] = ("weight", "bias")
) -> tuple[Row, ...]:
    """One projection that holds queries, keys and values."""
    return tuple(
        Row((f"{theirs}.{part}",), tuple(f"{ATTENTION_BLOCK}.{name}.{part}" for name in QKV), operations)
        for part in parts
    )


def qkv_sizes(config: MoebaConfig) -> list[int]:
    """Rows of all queries, all keys and all values, where a fused projection holds them in this order."""
    keys = config.num_key_value_heads * config.head_dim
    return [config.num_attention_heads * config.head_dim, keys, keys]


QK_NORM: tuple[Row, ...] = same(f"{ATTENTION_BLOCK}.q_norm.weight", f"{ATTENTION_BLOCK}.k_norm.weight")

PRE_NORMS: tuple[Row, ...] = same(
    f"{LAYER}.input_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight"
)
# The same with biases.
PRE_LAYER_NORMS = linears(LAYER, LAYER, "input_layernorm", "post_attention_layernorm")
EMBEDDINGS_AND_LAYER_NORMS: tuple[Row, ...] = (
    *same("model.embed_tokens.weight", "lm_head.weight"),
    *linear("model.norm", "model.norm"),
    *PRE_LAYER_NORMS,
)

OUTPUT_NORMS: tuple[Row, ...] = same(
    f"{LAYER}.post_attention_layernorm.weight", f"{LAYER}.post_feedforward_layernorm.weight"
)

GATED = ("gate_proj", "up_proj", "down_proj")
GATED_MLP = linears(MLP, MLP, *GATED)

LLAMA_TENSORS: tuple[Row, ...] = (*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS)
INTERLEAVED_LLAMA_TENSORS: tuple[Row, ...] = (
    *EMBEDDINGS_AND_HEAD,
    *INTERLEAVED_ATTENTION,
    *GATED_MLP,
    *PRE_NORMS,
)

# A feed-forward without a gate.
PLAIN_MLP = linears(MLP, MLP, "up_proj", "down_proj")

FUSED_GATED_MLP: tuple[Row, ...] = (
    Row(
        (f"{MLP}.gate_up_proj.weight",),
        (f"{MLP}.gate_proj.weight", f"{MLP}.up_proj.weight"),
        (Split(lambda config: [config.intermediate_size] * 2),),
    ),
    *same(f"{MLP}.down_proj.weight"),
)
FUSED_ACTIVATION = (
    "stock applies the activation to a slice of one product, which a CPU computes with another function"
)


def per_expert(block: str, gate: str, up: str, down: str) -> tuple[Row, Row]:
    """Experts stored one by one under `block.experts.N.*` on their side, fused on ours."""
    names = [f"{LAYER}.{block}.experts.{{expert}}.{part}.weight" for part in (gate, up, down)]
    ours = f"{MLP}.experts"
    return (
        Row((names[0], names[1]), (f"{ours}.gate_up_proj",), (StackExperts(2), FuseGateUp())),
        Row((names[2],), (f"{ours}.down_proj",), (StackExperts(1),)),
    )


ROUTED_EXPERTS = per_expert("mlp", *GATED)
ROUTER_AND_EXPERTS: tuple[Row, ...] = (*same(f"{MLP}.gate.weight"), *ROUTED_EXPERTS)


def shared_expert(theirs: str = "shared_expert") -> tuple[Row, ...]:
    """The expert that each token visits, by their name for it."""
    return linears(f"{MLP}.{theirs}", f"{MLP}.shared_expert", *GATED)
