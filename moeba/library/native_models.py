"""What the classes of native models say of themselves, in attributes that only the library is meant to read."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from types import MappingProxyType

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

# What code that all stock models share reads of a config, whether its class declares it or not, and for what.
SHARED_READS = MappingProxyType(
    {
        "attention_chunk_size": "the cache and the mask of chunks",
        "fusion_config": "modules are replaced by fused ones",
        "head_dim": "the frequencies of rope",
        "is_causal": "the mask",
        "kv_sharing_modes": "which layers the cache leaves out",
        "layer_types": "the cache's and the masks' kinds of layers",
        "per_layer_config": "layers of other sizes",
        "sliding_window": "the cache and the mask of windows",
        "transformers_weights": "the name of the file of weights",
    }
)
# And what of it does not change a causal language model's function, or acts only where a class declares it.
SHARED_READS_WITHOUT_EFFECT = frozenset({
    "attention_dropout", "backbone_config", "chain_hidden_post_norm", "classifier_dropout", "distributed_config",
    "dtype",
    "first_k_dense_replace", "gradient_checkpointing", "hidden_dropout", "init_std", "initializer_factor",
    "initializer_range", "logits_mup_width_multiplier", "max_position_embeddings", "mlp_layer_types",
    "mtp_hidden_states_first", "mtp_layer_types", "mtp_mlp_layer_types", "mtp_per_layer_config", "num_attention_heads",
    "num_mtp_layers", "out_features", "output_attentions", "output_hidden_states", "return_dict", "sep_token_id",
    "stage_names", "tie_last_hidden_states", "tie_word_embeddings", "token_classification_bias", "unpadded_vocab_size",
    "use_cache", "vision_config", "vocab_size",
})  # fmt: skip
_OTHER_HEADS = (
    "Classification",
    "QuestionAnswering",
    "DoubleHeadsModel",
    "MultipleChoice",
    "SequenceSummary",
)


@cache
def holds_in_float32(model_type: str, name: str) -> bool:
    """Whether the stock causal language model holds its tensors of this name in float32, whatever it is loaded in.

    Hides `_keep_in_fp32_modules_strict`, a list of ends of names. 5.24 added the router's weight for ten families. It
    belongs to the class, so this stays when the oldest release is a later one.
    """
    kept = _causal_language_model(CONFIG_MAPPING[model_type])._keep_in_fp32_modules_strict or ()
    return any(entry.endswith(name) for entry in kept)


@cache
def undeclared_reads(model_type: str) -> frozenset[str]:
    """Keys that the modules of a stock causal language model read of a config though its class may not declare them.

    Hides that a config class keeps any key as an attribute, so that `getattr(config, "head_dim", None)` finds it. The
    source is asked, not a list, as each release may begin to read another key.
    """
    config_class = CONFIG_MAPPING[model_type]
    model_class = _causal_language_model(config_class)
    found: set[str] = set()
    owners: tuple[tuple[type, type], ...] = ((config_class, PreTrainedConfig), (model_class, PreTrainedModel))
    for owner, base in owners:
        own = {part.__module__ for part in owner.__mro__ if issubclass(part, base) and part is not base}
        for name in sorted(own):
            found |= set(keys_read_in(inspect.getsource(sys.modules[name]), base is PreTrainedConfig))
    return frozenset(found)


def _causal_language_model(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    # The table's annotation speaks of several classes, which only those of other heads have.
    return MODEL_FOR_CAUSAL_LM_MAPPING[config_class]  # type: ignore[return-value]


def keys_read_in(source: str, of_config: bool = False) -> Iterator[str]:
    """The names that a module's code reads of configs, but for classes of other heads.

    Args:
        of_config: the module defines config classes, which read themselves and the keys that they are made from.
    """
    configs = {"self", "kwargs"} if of_config else set()
    heads = [
        node
        for node in ast.parse(source).body
        if not (isinstance(node, ast.ClassDef) and any(head in node.name for head in _OTHER_HEADS))
    ]
    for node in (inner for outer in heads for inner in ast.walk(outer)):
        if isinstance(node, ast.Attribute) and _is_config(node.value, configs):
            yield node.attr
        elif isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.func, ast.Name):
            reads = node.func.id in ("getattr", "hasattr") and _is_config(node.args[0], configs)
            if reads and isinstance(node.args[1], ast.Constant):
                yield str(node.args[1].value)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
            reads = node.func.attr in ("pop", "get", "setdefault") and _is_config(node.func.value, configs)
            if reads and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def _is_config(node: ast.expr, names: set[str]) -> bool:
    """`config`, `self.config` and the like, or one of these names."""
    if isinstance(node, ast.Attribute):
        return node.attr.endswith("config")
    return isinstance(node, ast.Name) and (node.id.endswith("config") or node.id in names)
