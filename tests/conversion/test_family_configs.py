"""Each family's config: every field has one place, comes back, and is drawn over several values."""

from __future__ import annotations

import importlib
import random
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import native
import pytest
from draws import DRAWS
from support import VARIANTS, tiny_config
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from moeba.conversion import FAMILIES, family_of
from moeba.conversion.config_differences import TRAINING_FIELDS, differences
from moeba.conversion.config_rows import COMMON, Computed, Inert, Only, Pair, Stated, field_names, value_of
from moeba.conversion.families import KNOWN_FAMILIES
from moeba.conversion.plan import active_rows, moeba_shapes

every_family = pytest.mark.parametrize("model_type", FAMILIES)


def test_every_family_has_a_draw():
    missing = sorted(set(FAMILIES) - set(DRAWS))
    assert not missing, f"write a draw in tests/draws for {', '.join(missing)}"
    assert not set(DRAWS) - set(KNOWN_FAMILIES), "a draw of no family"


@every_family
def test_every_field_of_the_stock_config_is_in_one_row(model_type):
    rows = (*COMMON, *family_of(model_type).config_rows)
    mentioned = [name for row in rows for name in row.theirs]
    assert not sorted(name for name in set(mentioned) if mentioned.count(name) > 1), "in several rows"
    config_class = CONFIG_MAPPING[model_type]
    unclassified = sorted(field_names(config_class) - set(mentioned))
    assert not unclassified, f"no config row for {', '.join(unclassified)}"
    assert all(row.reason for row in rows if isinstance(row, (Inert, Only)))


@every_family
def test_rows_name_only_fields_that_the_stock_code_knows(model_type):
    config_class = CONFIG_MAPPING[model_type]
    known = field_names(config_class) | set(config_class.attribute_map)
    source = stock_source(model_type)
    invented = [
        name
        for row in family_of(model_type).config_rows
        if not isinstance(row, Stated)  # which other code reads
        for name in row.theirs
        # No field of the class, but the code may read it where a config.json has it.
        if name not in known
        # A nested config has a name of its own in the code, which is its field's.
        and not re.search(
            rf'config\.{name}\b|(?<=\W){re.escape(name)}\b|config, "{name}"|kwargs.*"{name}"'
            if "." in name
            else rf'config\.{name}\b|config, "{name}"|kwargs.*"{name}"',
            source,
        )
    ]
    assert not invented


def stock_source(model_type: str) -> str:
    """Text of the stock configuration and modeling modules, inherited classes' included."""
    config_class = CONFIG_MAPPING[model_type]
    model_class = AutoModelForCausalLM._model_mapping[config_class]
    files = {
        importlib.import_module(base.__module__).__file__
        for base in (*config_class.__mro__, *model_class.__mro__)
        if base.__module__.startswith("transformers.models.")
    }
    return "\n".join(Path(file).read_text(encoding="utf-8") for file in sorted(files))


@every_family
def test_every_tensor_of_the_stock_model_is_in_one_row(model_type):
    family = family_of(model_type)
    for seed in range(10):
        config = family.to_moeba(native.draw(model_type, seed))
        active = active_rows(family, config, moeba_shapes(config))
        names = [name for row, layer in active for name in row.their_names(layer, config)]
        assert len(names) == len(set(names)), seed


@every_family
def test_configs_come_back(model_type):
    """In and out again, over many configs."""
    family = family_of(model_type)
    for seed in range(30):
        ours = family.to_moeba(native.draw(model_type, seed))
        assert differences(ours, family.to_moeba(family.to_native(ours))) == [], seed


@every_family
@pytest.mark.parametrize("variant", VARIANTS)
def test_config_of_another_shape_is_held_exactly_or_refused_in_words(model_type, variant):
    """`--to auto` asks every family: what one cannot hold is a ValueError with names, never a crash."""
    family, ours = family_of(model_type), tiny_config(variant)
    try:
        native_config = family.to_native(ours)
    except ValueError as error:
        assert f"'{model_type}' cannot hold this model: " in str(error)
        return
    lost = {item.name for item in differences(ours, family.to_moeba(native_config))}
    assert lost <= TRAINING_FIELDS


@every_family
def test_draw_is_small_and_varies_every_field(model_type):
    """A field that is never drawn at another value is never proven."""
    configs = [native.config_from(model_type, random.Random(seed)) for seed in range(60)]
    for config in configs:
        assert config.hidden_size <= 64 and config.num_hidden_layers <= 4 and 60 < config.vocab_size <= 96
    stock = field_names(CONFIG_MAPPING[model_type])
    idle = [
        name
        for row in family_of(model_type).config_rows
        if isinstance(row, Computed) or isinstance(row, Pair) and row.our_name not in TRAINING_FIELDS
        for name in row.theirs
        if name in stock and len({repr(value_of(config, name)) for config in configs}) == 1
    ]
    assert not idle, (
        f"the draw gives one value only to {', '.join(idle)} (where only one is valid, the row is Only)"
    )


@every_family
def test_every_mechanism_is_drawn(model_type):
    """The stock class takes every drawn keyword as a field of its own: a misspelt one would change nothing."""
    config_class = CONFIG_MAPPING[model_type]
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    known |= {name for row in family_of(model_type).config_rows for name in row.theirs}
    drawn = {
        name for seed in range(20) for name in flat(DRAWS[model_type](random.Random(seed)), config_class)
    }
    assert not drawn - known


def flat(drawn: dict[str, Any], config_class: type) -> set[str]:
    """Names of drawn fields, those of a nested config dotted."""
    inner = {name: drawn[name] for name in config_class.sub_configs if isinstance(drawn.get(name), dict)}
    return (set(drawn) - set(inner)) | {f"{name}.{key}" for name, nested in inner.items() for key in nested}


REFUSED = [
    (model_type, row.their_name, row)
    for model_type, family in FAMILIES.items()
    for row in (*COMMON, *family.config_rows)
    if isinstance(row, Only)
]


def another(value: Any) -> Any:
    """A value that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return None if value else [1]


@pytest.mark.parametrize(
    "model_type, name, row", REFUSED, ids=[f"{family}-{name}" for family, name, _ in REFUSED]
)
def test_value_that_is_supported_at_one_value_only(model_type, name, row):
    config = native.draw(model_type, 0)
    value = another(row.value)
    *outer, last = name.split(".")
    object.__setattr__(value_of(config, ".".join(outer)) if outer else config, last, value)
    told = re.escape(f"{name}={value!r} is supported at {row.value!r} only: ")
    with pytest.raises(ValueError, match=f"{told}.+"):
        family_of(model_type).to_moeba(config)
