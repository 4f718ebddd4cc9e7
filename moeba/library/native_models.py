"""What the classes of native models say of themselves, in attributes that only the library is meant to read."""

from __future__ import annotations

from functools import cache

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING


@cache
def holds_in_float32(model_type: str, name: str) -> bool:
    """Whether the stock causal language model holds its tensors of this name in float32, whatever it is loaded in.

    Hides `_keep_in_fp32_modules_strict`, a list of ends of names. 5.24 added the router's weight for ten families. It
    belongs to the class, so this stays when the oldest release is a later one.
    """
    kept = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]._keep_in_fp32_modules_strict or ()
    return any(entry.endswith(name) for entry in kept)
