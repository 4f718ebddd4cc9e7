"""The fields can say a model of two stacks: each stack is a config of its own, and no field is declared again."""

from __future__ import annotations

from typing import Any

import pytest
from support import tiny_config

from moeba import MoebaConfig
from moeba.library.upstream import PreTrainedConfig, strict


@strict
class TwoStacksConfig(PreTrainedConfig):
    """As transformers' own composite configs are made."""

    model_type = "two_stacks"
    sub_configs = {"encoder": MoebaConfig, "decoder": MoebaConfig}
    encoder: dict | PreTrainedConfig | None = None
    decoder: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in self.sub_configs:
            if isinstance(said := getattr(self, name), dict):
                setattr(self, name, MoebaConfig.from_dict(said))
        super().__post_init__(**kwargs)


def test_two_stacks_are_said_with_one_set_of_fields(tmp_path):
    encoder, decoder = tiny_config(is_causal=False), tiny_config("moe")
    TwoStacksConfig(encoder=encoder, decoder=decoder).save_pretrained(tmp_path)
    loaded = TwoStacksConfig.from_pretrained(tmp_path)
    assert loaded.encoder.to_dict() == encoder.to_dict() and loaded.decoder.to_dict() == decoder.to_dict()
    assert loaded.get_text_config(decoder=True).num_experts == decoder.num_experts
    with pytest.raises(ValueError, match="num_experts_per_tok=99"):
        TwoStacksConfig(encoder=encoder, decoder={**decoder.to_dict(), "num_experts_per_tok": 99})
