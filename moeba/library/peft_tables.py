"""PEFT's tables of what an adapter targets where its config names no modules, by model type.

An undocumented module of PEFT, the same in every tested release. This file travels with a model's code and imports
nothing: the tables are filled in when PEFT itself has been imported, before it looks into them. It can go when PEFT has
a way to register a model type.
"""

from __future__ import annotations

import re
import sys

_NAME = re.compile(r"TRANSFORMERS_MODELS_TO_(\w+)_MODULES_MAPPING")
# As PEFT does for the decoders it lists: queries and values, or what makes them in latent attention …
_QUERIES_AND_VALUES = ["q_proj", "v_proj", "q_b_proj", "kv_b_proj"]
_KEYS_AND_VALUES = ["k_proj", "v_proj", "kv_b_proj"]
_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "q_b_proj", "kv_b_proj"]
# … but for these methods, by the name of their table. Experts are parameters, which no method takes by default.
_OTHER_TARGETS = {
    "BEFT_TARGET": ["v_proj", "kv_b_proj"],
    "IA3_FEEDFORWARD": ["down_proj"],
    "IA3_TARGET": [*_KEYS_AND_VALUES, "down_proj"],
    "LNTUNING_TARGET": [
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
        "norm",
    ],
    "OSF_TARGET": [*_PROJECTIONS, "gate_proj", "up_proj", "down_proj"],
}


def fill_peft_tables(model_type: str) -> None:
    """Name the targets of `model_type` in every table of PEFT that has none for it; nothing without PEFT."""
    constants = sys.modules.get("peft.utils.constants")
    for name, table in vars(constants).items() if constants is not None else ():
        if found := _NAME.fullmatch(name):
            table.setdefault(model_type, [*_OTHER_TARGETS.get(found[1], _QUERIES_AND_VALUES)])


__all__ = ["fill_peft_tables"]
