"""Faults that are wrong in both directions at once: the bytes come back, and only what is computed can tell.

Each is a field of our config that a family's table means otherwise than the stock model: changed on the way in, and
back on the way out. So the files agree, a twin's native config is right, and ours is wrong.

What no bound can see is not among them: where a stock model rounds at other places than ours, as BLOOM's does
(`Family.rounds_otherwise`), one rounding more hides among those; the certificate says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from native import build, draw, save

from moeba import MoebaConfig, convert
from moeba.conversion import FAMILIES, CertificateError, family
from moeba.conversion.config_differences import TRAINING_FIELDS, differences
from moeba.conversion.family import Family


class Wrong(NamedTuple):
    """What is done to a field on the way in, and what undoes it."""

    field: str
    there: Callable[[Any], Any]
    back: Callable[[Any], Any]


def times(field: str, factor: float) -> Wrong:
    """Powers of two: back is exact."""
    return Wrong(
        field,
        lambda value: value if value is None else value * factor,
        lambda value: value if value is None else value / factor,
    )


def plus(field: str, step: int) -> Wrong:
    return Wrong(
        field,
        lambda value: value if value is None else value + step,
        lambda value: value if value is None else value - step,
    )


def swapped(field: str, first: Any, second: Any) -> Wrong:
    def swap(value: Any) -> Any:
        return {first: second, second: first}.get(value, value)

    return Wrong(field, swap, swap)


def in_rope(name: str, factor: float) -> Wrong:
    def change(by: float) -> Callable[[Any], Any]:
        def changed(rope: Any) -> Any:
            rope = copy.deepcopy(rope)
            for settings in (rope, *rope.values()) if rope else ():
                if isinstance(settings, dict) and settings.get(name) is not None:
                    settings[name] = type(settings[name])(settings[name] * by)
            return rope

        return changed

    return Wrong("rope_parameters", change(factor), change(1 / factor))


def reversed_list(field: str) -> Wrong:
    def change(values: Any) -> Any:
        return values and values[::-1]

    return Wrong(field, change, change)


def exchanged_kinds(rope: Any) -> Any:
    kinds = ("full_attention", "sliding_attention")
    return (
        dict(zip(kinds, (rope[kind] for kind in reversed(kinds)), strict=True)) if kinds[0] in rope else rope
    )


DTYPE = ("model", "float32")
FAULTS: dict[str, tuple[Wrong, ...]] = {
    "llama": (
        times("norm_eps", 16), in_rope("rope_theta", 2), swapped("hidden_act", "silu", "gelu"),
        times("attention_dropout", 0.5), swapped("norm_type", "rmsnorm", "rmsnorm_float32"),
        swapped("attention_softmax_dtype", *DTYPE), swapped("attention_score_dtype", *DTYPE),
        in_rope("factor", 2),
    ),
    "qwen3": (swapped("qk_norm_after_rope", False, True), times("qk_norm_eps", 16), plus("sliding_window", 1)),
    "gemma2": (
        times("attn_logit_softcapping", 2), times("final_logit_softcapping", 2), times("attention_multiplier", 2),
        swapped("round_embedding_multiplier", True, False), plus("sliding_window", 1),
        reversed_list("layer_types"),
    ),
    "gemma3_text": (Wrong("rope_parameters", exchanged_kinds, exchanged_kinds),),
    "olmo2": (
        swapped("rotary_precision", "float32", "model"),
        swapped("rotary_precision", "float32", "float32_product"),
        swapped("norm_type", "rmsnorm", "rmsnorm_float32"),
    ),
    "smollm3": (Wrong("rotary_layers", lambda v: [not x for x in v], lambda v: [not x for x in v]),),
    "stablelm": (in_rope("partial_rotary_factor", 0.5),),
    "deepseek_v3": (
        swapped("router_matmul_dtype", *DTYPE), swapped("router_weight_dtype", *DTYPE),
        times("routed_scaling_factor", 2), swapped("norm_topk_prob", True, False),
        swapped("group_scoring", "top2_sum", "max"), swapped("scoring_func", "sigmoid", "softmax"),
        swapped("rope_interleave", True, False), times("norm_topk_eps", 2.0**20),
    ),
    "mixtral": (
        swapped("norm_topk_prob", True, False), swapped("router_weight_dtype", *DTYPE),
        times("router_jitter_noise", 0.5),
    ),
    "mistral4": (swapped("router_score_dtype", *DTYPE), times("query_growth_beta", 2)),
    "ernie4_5_moe": (swapped("router_matmul_dtype", *DTYPE),),
    "phimoe": (times("sparsemixer_eps", 4), times("router_jitter_noise", 0.5)),
    "gpt_oss": (
        times("swiglu_limit", 0.5), times("swiglu_alpha", 2),
        plus("sliding_window", 1),
    ),
    "granite": (
        times("residual_multiplier", 2), times("logit_scale", 2), times("embedding_multiplier", 2),
        times("attention_multiplier", 2),
    ),
    "cohere": (times("logit_scale", 2),),
    "gpt2": (
        swapped("scale_attn_by_inverse_layer_idx", True, False), times("embedding_dropout", 0.5),
        times("hidden_dropout", 0.5), swapped("hidden_act", "gelu_new", "gelu"),
    ),
    "bloom": (times("alibi_multiplier", 2),),
    "mpt": (times("clip_qkv", 0.5),),
    "mimo_v2_flash": (times("attention_value_multiplier", 2),),
    "gptj": (swapped("attention_score_dtype", *DTYPE),),
    "biogpt": (times("embedding_dropout", 0.5),),
    "qwen2_moe": (swapped("norm_topk_prob", True, False),),
    "bert-generation": (times("norm_eps", 4),),
    "dots1": (
        swapped("router_loss", "none", "with_router_logits"), times("norm_topk_eps", 2.0**-20),
        swapped("output_router_logits", True, False),
    ),
    "helium": (plus("eos_token_id", 1), times("initializer_range", 2), swapped("use_cache", True, False)),
}  # fmt: skip
CASES = [(model_type, wrong) for model_type, faults in FAULTS.items() for wrong in faults]
# One of each way to see: float32 logits, half precision, training, and what the twin alone is long enough for.
SAMPLE = ("llama-norm_eps", "gptj-attention_score_dtype", "gpt2-hidden_dropout", "qwen3-sliding_window")


# Where a field says something although it is not idle: one expert a token weighs 1, the scores of all add
# up to 1, and groups that are open need no score.
ACTS: dict[str, Callable[[MoebaConfig], bool]] = {
    "router_weight_dtype": lambda config: config.num_experts_per_tok > 1,
    "norm_topk_prob": lambda config: 1 < config.num_experts_per_tok < config.num_experts,
    "router_score_dtype": lambda config: (
        config.norm_topk_prob and 1 < config.num_experts_per_tok < config.num_experts
    ),
    "group_scoring": lambda config: (
        config.num_experts // config.n_group > 2
        and config.topk_group < config.n_group
        and config.num_experts_per_tok > 1
    ),
}


def changed(config: MoebaConfig, field: str, change: Callable[[Any], Any]) -> MoebaConfig:
    values = config.to_dict()
    return MoebaConfig.from_dict({**values, field: change(copy.deepcopy(values[field]))})


def source_with(model_type: str, wrong: Wrong):
    """The family's first draw in which the field acts."""
    for seed in range(20):
        native = draw(model_type, seed)
        config = FAMILIES[model_type].to_moeba(native)
        if not ACTS.get(wrong.field, lambda config: True)(config):
            continue
        try:
            other = changed(config, wrong.field, wrong.there)
        except ValueError:
            continue
        if wrong.there(getattr(config, wrong.field)) != getattr(config, wrong.field) and (
            differences(config, other) or wrong.field in TRAINING_FIELDS
        ):
            return native
    raise LookupError(f"no draw of {model_type} in which {wrong.field} acts")


def assert_caught(tmp_path, monkeypatch, model_type: str, wrong: Wrong) -> None:
    source = save(build(source_with(model_type, wrong)), tmp_path / "native")
    # What fails by its checks needs no planted faults, which take most of the time.
    monkeypatch.setattr("moeba.conversion.certificate.proof.plant", lambda *_: ())
    in_, out, nearest = Family.to_moeba, Family.to_native, family.nearest_native
    monkeypatch.setattr(
        Family, "to_moeba", lambda self, native: changed(in_(self, native), wrong.field, wrong.there)
    )
    monkeypatch.setattr(
        Family, "to_native", lambda self, config: out(self, changed(config, wrong.field, wrong.back))
    )
    monkeypatch.setattr(
        family,
        "nearest_native",
        lambda rows, name, config: nearest(rows, name, changed(config, wrong.field, wrong.back)),
    )
    with pytest.raises(CertificateError) as caught:
        convert(source, tmp_path / "moeba")
    assert not (tmp_path / "moeba").exists()
    certificate = caught.value.certificate
    assert certificate.verdict == "failed" and certificate.keys["round_trip"] == "bitwise"


def named(cases) -> list[str]:
    return [f"{model_type}-{wrong.field}" for model_type, wrong in cases]


def test_there_are_enough_of_them():
    assert len(CASES) >= 43
    assert set(SAMPLE) <= set(named(CASES))


@pytest.mark.parametrize(
    ("model_type", "wrong"),
    [case for case in CASES if named([case])[0] in SAMPLE],
    ids=lambda value: value if isinstance(value, str) else value.field,
)
def test_a_fault_both_ways_is_caught(tmp_path, monkeypatch, model_type, wrong):
    assert_caught(tmp_path, monkeypatch, model_type, wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "wrong"),
    [case for case in CASES if named([case])[0] not in SAMPLE],
    ids=lambda value: value if isinstance(value, str) else value.field,
)
def test_every_fault_both_ways_is_caught(tmp_path, monkeypatch, model_type, wrong):
    assert_caught(tmp_path, monkeypatch, model_type, wrong)
