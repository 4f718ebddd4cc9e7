"""Each family in and out again: the same bytes come back, and stock transformers loads what goes out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from family_case import FIRST, Case, wide
from hypothesis import given, note
from hypothesis import strategies as st
from native import config_from, load, read_all, same_tensors
from parity import assert_close, rounding_of
from support import randomise
from transformers import AutoModelForCausalLM

from moeba import MoebaForCausalLM, convert, export
from moeba.conversion import FAMILIES
from moeba.conversion.certificate import Certificate, certify_folders
from moeba.conversion.certificate.controls import FAULTS
from moeba.conversion.certificate.planted import KINDS
from moeba.conversion.certificate.twin import shrink
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.config_differences import differences
from moeba.conversion.config_rows import Pair, value_of

first_seed = pytest.mark.parametrize(
    "case", FIRST, indirect=True, ids=[f"{name}-{seed}" for name, seed in FIRST]
)


def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def assert_comes_back(case: Case, source: Path, moeba: Path, back: Path) -> None:
    """Same bytes, a config of the same meaning, and a folder that stock transformers loads without a complaint."""
    export(moeba, back, to=case.model_type, certificate=False, max_shard_size=case.shard_size)
    same_tensors(read_all(source), read_all(back))
    assert_same_config(case, source, back)


def assert_same_config(case: Case, source: Path, back: Path) -> None:
    family = case.family
    before, after = (family.read_config(Checkpoint(folder).config) for folder in (source, back))
    assert before.architectures == [family.architecture] and after.architectures == [
        family.exported_architecture
    ]
    assert differences(family.to_moeba(before), family.to_moeba(after)) == []
    changed = {
        name: (value_of(before, name), value_of(after, name))
        for row in family.config_rows
        if isinstance(row, Pair)
        for name in row.theirs
        if value_of(before, name) != value_of(after, name)
    }
    # What a Computed row says may be spelled in several ways; what one field says, in one.
    assert not changed


def test_in_and_out_again(case):
    assert_comes_back(case, case.source, case.moeba, case.folder / "back")
    again = load(AutoModelForCausalLM, case.folder / "back")
    ids = case.ids()
    assert torch.equal(logits_of(again, ids), logits_of(case.theirs, ids))


def test_in_and_out_again_in_bfloat16(case):
    def dtypes(folder: Path) -> set[torch.dtype]:
        return {info.dtype for info in Checkpoint(folder).tensors.values()}

    assert torch.bfloat16 in dtypes(case.half_source)
    assert dtypes(case.half_moeba) == dtypes(case.half_source)
    assert_comes_back(case, case.half_source, case.half_moeba, case.folder / "back-half")


@first_seed
def test_out_and_in_again(case):
    """Random weights of ours, under the family's config in our words."""
    assert_goes_out(case)


def assert_goes_out(case: Case) -> None:
    config = copy.deepcopy(case.family.to_moeba(case.config))
    ours = randomise(MoebaForCausalLM(config), seed=7).eval()
    ours.tie_weights()
    start, out, again = (case.folder / name for name in ("own", "own-native", "own-again"))
    ours.save_pretrained(start, max_shard_size="4KB" if case.seed % 2 else "5GB")
    export(start, out, to=case.model_type, certificate=False)
    theirs, ours = load(AutoModelForCausalLM, out), load(MoebaForCausalLM, start)
    ids = case.ids()
    assert_close(logits_of(ours, ids), logits_of(theirs, ids), case.exact, "logits", rounding_of(case))
    convert(out, again, certificate=False)
    same_tensors(read_all(start), read_all(again))


def assert_certified(certificate: Certificate, case: Case) -> None:
    assert certificate.verdict == "verified", certificate.lines()
    planted = {control.fault for control in certificate.negative_controls}
    small = shrink(case.family.to_moeba(case.config))
    expected = {fault.name for fault in FAULTS if fault.applies(small)}
    assert planted >= expected
    # What only half precision, training or faint inputs show is planted there.
    known = {fault.name for kind in KINDS for fault in kind.faults}
    assert all("(bfloat16)" in fault for fault in planted - known)
    assert all(control.caught for control in certificate.negative_controls)


@first_seed
def test_conversion_is_certified(case):
    """Verified, and every fault that can be planted in such a model is caught."""
    assert_certified(certify_folders(case.source, case.moeba), case)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_comes_back_from_everywhere(tmp_path_factory, model_type):
    """The wide proof: many configs, and the smallest one that fails."""

    @wide(5)
    @given(rng=st.randoms(use_true_random=False))
    def prove(rng) -> None:
        case = Case(config_from(model_type, rng), tmp_path_factory.mktemp(model_type), seed=rng.randrange(4))
        note(case.describe())
        assert_comes_back(case, case.source, case.moeba, case.folder / "back")
        ways = [(case.source, case.moeba), (case.moeba, case.folder / "back")]
        assert_certified(certify_folders(*rng.choice(ways)), case)
        assert_goes_out(case)

    prove()
