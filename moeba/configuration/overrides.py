"""A saved config with some fields said anew, as in `from_pretrained(folder, num_hidden_layers=2)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROPE_NAMES = ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
# Names of fields that earlier versions had.
OLD_NAMES = ("logits_scaling",)
_BY_LAYER = ("layer_types", "rotary_layers", "mlp_layer_types")


def overridden(
    saved: Mapping[str, Any], said: Mapping[str, Any], aliases: Mapping[str, str]
) -> dict[str, Any]:
    """The values of both, where those `said` win.

    Fewer layers than were saved are the first ones, as in stock models, so lists that say something of each layer end
    there as well. Rope's old spellings change `rope_parameters`.

    Args:
        said: fields and rope's old spellings, by their own names.
        aliases: other spellings of fields, each with the field's name.

    Raises:
        ValueError: a rope setting for all layers where the file has one for each kind.
    """
    names = {name for name in said if name not in ROPE_NAMES}
    values = {name: value for name, value in saved.items() if aliases.get(name, name) not in names}
    if any(name in ROPE_NAMES for name in said):
        values["rope_parameters"] = _rope(saved, {name: said[name] for name in said if name in ROPE_NAMES})
        values = {name: value for name, value in values.items() if name not in ROPE_NAMES}
    if said.get("position_embedding_type", "rope") != "rope":
        values = {
            name: value for name, value in values.items() if name not in ("rope_parameters", "rotary_layers")
        }
    layers = said.get("num_hidden_layers")
    if isinstance(layers, int):
        for name in _BY_LAYER:
            if isinstance(values.get(name), list):
                values[name] = values[name][:layers]
        if "sparse" in saved.get("mlp_layer_types", ()) and "sparse" not in values.get("mlp_layer_types", ()):
            values["num_experts"] = 0
        if isinstance(uneven := values.get("per_layer_config"), Mapping):
            values["per_layer_config"] = {key: sizes for key, sizes in uneven.items() if int(key) < layers}
    return values | {name: said[name] for name in names}


def _rope(saved: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    rope = saved.get("rope_scaling") or saved.get("rope_parameters") or {}
    if by_kind := sorted(name for name, value in rope.items() if isinstance(value, Mapping)):
        raise ValueError(
            f"{', '.join(f'{name}={value}' for name, value in said.items())}: rope_parameters is given for each of "
            f"{by_kind}; say rope_parameters anew."
        )
    theta = {name: source[name] for source in (saved, rope) for name in ("rope_theta",) if name in source}
    settings = said.get("rope_scaling")
    kept = {**theta, **settings} if isinstance(settings, Mapping) else {**theta, **rope}
    return kept | {name: value for name, value in said.items() if name != "rope_scaling"}


def with_new_names(values: Mapping[str, Any], of_file: bool = False) -> dict[str, Any]:
    """The same values, those under `OLD_NAMES` as today's fields say them.

    Args:
        of_file: earlier versions wrote both names, and multiplied by the one and divided by the other.

    Raises:
        ValueError: a field is said by its old and its new name.
    """
    found = dict(values)
    if "logits_scaling" not in found:
        return found
    divisor, scale = found.pop("logits_scaling"), found.get("logit_scale", 1.0)
    if divisor == 1.0:
        return {"logit_scale": 1.0, "logit_scale_operation": "multiply"} | found
    if scale == 1.0:
        return found | {"logit_scale": divisor, "logit_scale_operation": "divide"}
    if of_file and isinstance(divisor, int | float) and isinstance(scale, int | float) and divisor:
        return found | {"logit_scale": scale / divisor}
    raise ValueError(f"logits_scaling={divisor} contradicts logit_scale={scale}: they are one field.")
