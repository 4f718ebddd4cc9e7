"""The experts classes of transformers, each alone and with random numbers in it."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import transformers
from expert_layers import fill
from torch import nn

MODELS = Path(transformers.__file__).parent / "models"
DECORATED = re.compile(r"^@use_experts_implementation(?:\(.*\))?\nclass (\w+)\(", re.MULTILINE)
EXPERTS, HIDDEN, WIDTH = 7, 24, 20

# By all the names that families have for them; an experts class reads some.
FIELDS = dict(
    num_experts=EXPERTS,
    num_local_experts=EXPERTS,
    n_routed_experts=EXPERTS,
    moe_num_experts=EXPERTS,
    hidden_size=HIDDEN,
    moe_hidden_size=HIDDEN,
    moe_latent_size=None,
    intermediate_size=WIDTH,
    moe_intermediate_size=WIDTH,
    hidden_act="silu",
    hidden_activation="gelu_pytorch_tanh",
    mlp_hidden_act="relu2",
    swiglu_alpha=1.7,
    swiglu_limit=1.25,
    mlp_gate_softcap=1.5,
    mlp_up_softcap=2.0,
    post_norm_eps=1e-6,
    rms_norm_eps=1e-6,
)


@cache
def classes_by_name() -> dict[str, tuple[str, str]]:
    """`class name -> (module, class name)` of every experts class that carries the interface's decorator."""
    found = {}
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        for name in DECORATED.findall(path.read_text(encoding="utf-8")):
            found[name] = (f"transformers.models.{path.parent.name}.{path.stem}", name)
    return found


def native_layer(name: str, implementation: str = "moeba") -> nn.Module:
    module, class_name = classes_by_name()[name]
    experts = getattr(importlib.import_module(module), class_name)
    config = SimpleNamespace(**FIELDS, _experts_implementation=implementation)
    return fill(experts(config))
