"""What the stock library's own source is asked."""

from __future__ import annotations

from pathlib import Path

import transformers

from moeba.library.native_models import (
    SHARED_READS,
    SHARED_READS_WITHOUT_EFFECT,
    keys_read_in,
    undeclared_reads,
)

ROOT = Path(transformers.__file__).parent
SHARED = (
    "cache_utils",
    "configuration_utils",
    "masking_utils",
    "modeling_layers",
    "modeling_rope_utils",
    "modeling_utils",
)
ASKED = 'getattr(config, "{name}"', 'getattr(self.config, "{name}"', 'getattr(text_config, "{name}"'


def test_what_shared_code_asks_a_config_for_is_known():
    """`getattr(config, "sliding_window", None)`: a key that no class declares acts, if the table does not have it."""
    found = set()
    for module in SHARED:
        source = (ROOT / f"{module}.py").read_text(encoding="utf-8")
        names = set(keys_read_in(source))
        found |= {name for name in names if any(form.format(name=name) in source for form in ASKED)}
    assert found - SHARED_READS.keys() - SHARED_READS_WITHOUT_EFFECT == set()
    assert {"layer_types", "sliding_window", "head_dim", "is_causal"} <= found


def test_reads_of_a_family():
    assert "head_dim" in undeclared_reads("qwen3_moe")
    assert "sliding_window" in undeclared_reads("olmoe")
    assert {"sliding_window_pattern", "rope_local_base_freq"} <= undeclared_reads("gemma3_text")
    assert not {"max_window_layers", "use_mrope", "hidden_dropout"} & undeclared_reads("qwen3_moe")


def test_names_are_found_in_each_form():
    source = """
class Config:
    def __post_init__(self, **kwargs):
        self.x = kwargs.pop("a", 1) or getattr(self, "b", None)

class Model:
    def __init__(self, config):
        self.c = config.d
        self.e = getattr(self.config, "f", 0)

class ModelForTokenClassification:
    def __init__(self, config):
        self.g = config.h
"""
    assert {"a", "b", "d", "f"} <= set(keys_read_in(source, of_config=True))
    assert set(keys_read_in(source)) == {"d", "f"}
