"""A converted model's own loss is the stock model's, in training and in evaluation, as the source's config says."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from family_case import CASES, Case, padded, positions_of, takes_positions
from native import draw, plain
from support import random_ids
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from moeba import convert
from moeba.conversion import FAMILIES, family_of
from moeba.conversion.config_rows import Pair, value_of

MIXTURES = [name for name, family in FAMILIES.items() if family.kind == "moe"]
CASES_WITH_EXPERTS = [case for case in CASES if case[0] in MIXTURES]
every_mixture = pytest.mark.parametrize("model_type", MIXTURES)
COEFFICIENT = 0.9  # of GPT-OSS's published config: large enough to be seen
SWITCH, FACTOR = "output_router_logits", "router_aux_loss_coef"


@every_mixture
def test_the_table_says_which_stock_models_balance(model_type):
    config_class = CONFIG_MAPPING[model_type]
    stock = importlib.import_module(MODEL_FOR_CAUSAL_LM_MAPPING[config_class].__module__)
    balances = hasattr(stock, "load_balancing_loss_func")
    config = draw(model_type, 0)
    theirs = {
        row.our_name: row.their_name for row in family_of(model_type).config_rows if isinstance(row, Pair)
    }
    said = {theirs[name]: value for name, value in ((SWITCH, True), (FACTOR, COEFFICIENT)) if name in theirs}
    for name, value in said.items():
        *outer, field = name.split(".")
        setattr(value_of(config, ".".join(outer)) if outer else config, field, value)
    ours = family_of(model_type).to_moeba(config)
    assert ours.router_loss == ("with_router_logits" if balances else "none")
    assert ours.output_router_logits == (SWITCH in theirs) or not balances
    assert not balances or ours.router_aux_loss_coef == COEFFICIENT
    again = family_of(model_type).to_native(ours)
    assert {name: value_of(again, name) for name in said} == said


@contextmanager
def balanced(models: tuple[PreTrainedModel, ...], shown: bool, training: bool) -> Iterator[None]:
    """The loss's fields set on the models, and the heads alone in training, so that nothing is drawn at random."""
    before = [(model.config.to_dict(), getattr(model, FACTOR, None)) for model in models]
    for model in models:
        setattr(model.config, SWITCH, shown)
        for place in (model, model.config):
            if hasattr(place, FACTOR):
                setattr(place, FACTOR, COEFFICIENT)
        model.training = training
    try:
        yield
    finally:
        for model, (values, factor) in zip(models, before, strict=True):
            for name in (SWITCH, FACTOR):
                if name in values:
                    setattr(model.config, name, values[name])
            if factor is not None:
                setattr(model, FACTOR, factor)
            model.training = False
            model.zero_grad()


def inputs(case: Case) -> list[dict[str, torch.Tensor]]:
    """Without a mask, alone and as one of a step's micro-batches; and with padding, which no label marks."""
    ids, (filled, mask) = case.ids(), padded(case)
    batches = [{"input_ids": ids, "labels": ids}]
    batches.append({**batches[0], "num_items_in_batch": torch.tensor(3 * ids.numel())})
    if takes_positions(case.theirs):
        # What comes after padding alone is not the same everywhere, and no place may predict it.
        labels = filled.masked_fill((mask == 0) | (positions_of(mask) == 0), -100)
        positions = {"position_ids": positions_of(mask)}
        batches.append({"input_ids": filled, "attention_mask": mask, "labels": labels, **positions})
    return batches


def router_gradients(model: PreTrainedModel, experts: int, width: int) -> list[torch.Tensor]:
    """In the order of the layers; a stock model may call its routers otherwise."""
    return [
        p.grad
        for name, p in model.named_parameters()
        if ("gate.w" in name or "router" in name) and "shared" not in name and p.shape == (experts, width)
    ]


def assert_same_loss(case: Case, shown: bool, training: bool) -> None:
    config, models = case.ours.config, (case.theirs, case.ours)
    has_loss = shown and config.router_loss == "with_router_logits"
    for batch in inputs(case):
        with balanced(models, shown, training):
            outputs = []
            for model in models:
                torch.manual_seed(0)  # sparse mixing draws experts
                output = model(**batch, use_cache=False)
                output.loss.backward()
                outputs.append(output)
            theirs, ours = outputs
            torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=0)
            assert list(ours) == list(theirs)
            assert (ours.aux_loss is not None) == has_loss
            if has_loss:
                torch.testing.assert_close(ours.aux_loss, theirs.aux_loss, rtol=1e-5, atol=0)
            pair = [router_gradients(model, config.num_experts, config.hidden_size) for model in models]
            assert len(pair[0]) == len(pair[1]) == len(config.sparse_layers)
            # A gradient that is zero but for rounding is as small as rounding makes it.
            largest = float(case.ours.lm_head.weight.grad.abs().max())
            for stock, own in zip(*pair, strict=True):
                torch.testing.assert_close(own, stock, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("case", CASES_WITH_EXPERTS, indirect=True, ids=lambda case: f"{case[0]}-{case[1]}")
def test_same_loss(case):
    if not case.ours.config.sparse_layers:
        pytest.skip("no experts in this draw, for whose loss the stock model fails")
    for shown in (False, True):
        assert_same_loss(case, shown, training=True)
    assert_same_loss(case, True, training=False)


@pytest.mark.slow
@every_mixture
@pytest.mark.parametrize("shown", [False, True])
def test_same_loss_in_whole_models_in_training(model_type, shown, tmp_path):
    """Sources that say so themselves, every module in training, and what is drawn at random there drawn alike."""
    for seed in range(20):
        config = draw(model_type, seed)
        if family_of(model_type).to_moeba(config).sparse_layers:
            break
    values = {**plain(config), SWITCH: shown}
    values |= {name: 0.0 for name in ("attention_dropout", "hidden_dropout") if name in values}
    if FACTOR in values:
        values[FACTOR] = COEFFICIENT
    case = Case(CONFIG_MAPPING[model_type](**values), tmp_path, seed)
    losses = []
    for batch in inputs(case):
        for model in (case.theirs, case.ours):
            torch.manual_seed(0)
            losses.append(model.train()(**batch, use_cache=False).loss)
        torch.testing.assert_close(losses.pop(), losses.pop(), rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------------- what convert says

WORDS = {
    "gpt_oss": (
        "as the source says (output_router_logits=False, router_aux_loss_coef=0.9)",
        "in evaluation too",
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM has none", "router_loss='training'"),
}


def sparse_case(model_type: str, folder, **changes) -> Case:
    config = draw(model_type, 0)
    return Case(CONFIG_MAPPING[model_type](**{**plain(config), **changes}), folder)


def notes_on_balance(result) -> list[str]:
    return [note for note in result.plan.notes if "balance" in note]


@pytest.mark.parametrize("model_type", WORDS)
def test_convert_says_that_nothing_is_balanced_and_how_to_change_it(model_type, tmp_path):
    case = sparse_case(model_type, tmp_path, **({FACTOR: COEFFICIENT} if model_type == "gpt_oss" else {}))
    [note] = notes_on_balance(convert(case.source, case.folder / "told", certificate=False))
    assert all(word in note for word in WORDS[model_type])
    assert note in json.loads((case.folder / "told/moeba_provenance.json").read_text())["notes"]
    # As the note says: with one field, the model trains with a balance loss.
    ids, losses = case.ids(), []
    for choice in (case.ours.config.router_loss, "training"):
        case.ours.config.router_loss = choice
        case.ours.training = True
        output = case.ours(ids, labels=ids, use_cache=False)
        losses.append(output.loss)
    expected = losses[0] + case.ours.config.router_aux_loss_coef * output.aux_loss
    torch.testing.assert_close(losses[1], expected, rtol=1e-6, atol=0)
    assert losses[1] > losses[0]


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_and_nothing_where_there_is_nothing_to_say(model_type, tmp_path):
    """No experts; or a source that balances them."""
    case = sparse_case(
        model_type, tmp_path, **({SWITCH: True, FACTOR: 0.02} if model_type == "mixtral" else {})
    )
    assert not notes_on_balance(convert(case.source, tmp_path / "moeba", dry_run=True))


def test_half_precision(tmp_path):
    """The stock loss takes its softmax in the router's own dtype."""
    case = sparse_case("mixtral", tmp_path, **{SWITCH: True})
    ids = random_ids(2, 20, case.config.vocab_size)
    theirs, ours = (model.to(torch.bfloat16)(ids, labels=ids) for model in (case.theirs, case.ours))
    assert torch.equal(ours.aux_loss, theirs.aux_loss)
