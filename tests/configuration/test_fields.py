"""The one table of fields: no field can be added without saying what it means, when it acts and how it is watched."""

from __future__ import annotations

from dataclasses import fields

import pytest
from support import SIZES, SPARSE, tiny_config

from moeba import MoebaConfig, MoebaForCausalLM
from moeba.configuration.schema import FACTS, PARTS, is_idle, wrong_values
from moeba.library.upstream import PreTrainedConfig

OWN = [field.name for field in fields(MoebaConfig) if "facts" in field.metadata]


def test_every_field_stands_in_one_part():
    inherited = {field.name for field in fields(PreTrainedConfig)}
    assert {field.name for field in fields(MoebaConfig)} - set(OWN) <= inherited
    assert sorted(OWN) == sorted(FACTS)
    assert len(FACTS) == sum(len(fields(part)) for part in PARTS)


@pytest.mark.parametrize("name", OWN)
def test_a_field_says_how_it_is_watched(name):
    """What decides the function has a wrong value that certificates plant, or the reason why it has none."""
    facts = FACTS[name]
    assert facts.meaning
    assert f"    {name} (" in MoebaConfig.__doc__
    if facts.effect == "function":
        assert bool(facts.wrong) != bool(facts.unplanted), (
            f"{name} decides the function: say `wrong=` (what certificates plant) or `unplanted=` (why nothing)"
        )
    assert all((facts.effect == "training") == (wrong.seen in ("training", "loss")) for wrong in facts.wrong)


def test_wrong_values_have_names_of_their_own():
    names = [wrong.name for _, wrong in wrong_values()]
    assert len(set(names)) == len(names)


def test_a_saved_config_says_only_what_acts(tmp_path):
    """The fields of parts that a model does not have are absent, and the file means the same."""
    tiny_config().save_pretrained(tmp_path)
    saved = MoebaConfig.get_config_dict(tmp_path)[0]
    config = MoebaConfig.from_pretrained(tmp_path)
    assert (
        config == tiny_config(_name_or_path=config._name_or_path)
        or config.to_dict() == tiny_config().to_dict()
    )
    absent = {name for name in FACTS if name not in saved}
    assert {"alibi_bias_max", "n_group", "num_experts_per_tok", "swiglu_alpha", "qk_norm_eps"} <= absent
    assert all(is_idle(config, name) for name in absent)


def test_what_somebody_said_is_saved(tmp_path):
    values = {**SIZES, **SPARSE, "n_group": 2, "topk_group": 1}
    MoebaConfig(**values).save_pretrained(tmp_path)
    saved = MoebaConfig.get_config_dict(tmp_path)[0]
    assert values.items() <= saved.items()


OLD_NAMES = [
    ({"logits_scaling": 6.0}, (6.0, "divide")),
    ({"logits_scaling": 1.0}, (1.0, "multiply")),
    ({"logit_scale": 0.25}, (0.25, "multiply")),
]


@pytest.mark.parametrize("said, want", OLD_NAMES)
def test_old_names_of_fields(said, want):
    for config in (MoebaConfig(**said), MoebaConfig.from_dict({"model_type": "moeba", **said}),
                   MoebaConfig.from_dict(tiny_config().to_dict(), **said)):  # fmt: skip
        assert (config.logit_scale, config.logit_scale_operation) == want


def test_a_field_by_its_old_and_its_new_name():
    with pytest.raises(ValueError, match=r"logits_scaling=6.0 contradicts logit_scale=2.0"):
        MoebaConfig(logits_scaling=6.0, logit_scale=2.0)


def test_files_with_both_names_multiply_and_divide():
    config = MoebaConfig.from_dict({"model_type": "moeba", "logits_scaling": 4.0, "logit_scale": 2.0})
    assert (config.logit_scale, config.logit_scale_operation) == (0.5, "multiply")


@pytest.mark.parametrize(
    "written", [{"logits_scaling": 8.0}, {"logit_scale": 8.0, "logit_scale_operation": "divide"}]
)
@pytest.mark.parametrize(
    "said, want",
    [(dict(logits_scaling=4.0), 4.0), (dict(logits_scaling=1.0), 1.0), (dict(logit_scale=2.0), 2.0)],
)
def test_overrides_of_a_file_that_divides(written, said, want):
    config = MoebaConfig.from_dict({**tiny_config().to_dict(), **written}, **said)
    assert config.logits_scaling == config.logit_scale == want


def test_the_old_name_as_an_attribute():
    config = tiny_config()
    config.logits_scaling = 8.0
    assert (config.logit_scale, config.logit_scale_operation, config.logits_scaling) == (8.0, "divide", 8.0)


def test_live_fields_may_be_set_on_a_built_model():
    model = MoebaForCausalLM(tiny_config())
    ids = model.dummy_inputs["input_ids"]
    model.config.logit_scale = 0.5
    scaled = model(ids).logits
    model.config.logit_scale = 1.0
    assert (scaled * 2 == model(ids).logits).all()
    model.config.residual_multiplier = 0.5
    with pytest.raises(ValueError, match="residual_multiplier"):
        model(ids)
