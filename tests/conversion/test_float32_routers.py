"""Routers that stock models hold in float32, or do not, as the release of transformers has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from family_case import Case
from native import draw, load, read_all, same_tensors

from moeba import MoebaForCausalLM, export
from moeba.conversion import FAMILIES, family_of
from moeba.conversion.checkpoint import Checkpoint

# Multiply in float32: three whose stock class holds the router in float32 from 5.24 on, and one that always did.
FAMILIES_OF_BOTH_KINDS = ("deepseek_v2", "glm4_moe", "exaone_moe", "flint")
ROUTER = ".mlp.gate.weight"


def sparse(model_type: str) -> tuple[str, int]:
    """The first case of the family that has experts."""
    seeds = (
        seed for seed in range(20) if family_of(model_type).to_moeba(draw(model_type, seed)).sparse_layers
    )
    return model_type, next(seeds)


every_mixture = pytest.mark.parametrize(
    "case",
    [sparse(name) for name, family in FAMILIES.items() if family.kind == "moe"],
    indirect=True,
    ids=lambda found: found[0],
)
some = pytest.mark.parametrize(
    "case", [*map(sparse, FAMILIES_OF_BOTH_KINDS)], indirect=True, ids=FAMILIES_OF_BOTH_KINDS
)


@every_mixture
def test_what_stock_holds_in_float32_moeba_does(case: Case):
    """The files are what the stock model saved after it was loaded in bfloat16."""
    held = {
        name: tensor.dtype for name, tensor in load(MoebaForCausalLM, case.half_moeba).state_dict().items()
    }
    stored = router_dtypes(case.half_moeba)
    assert stored and {name: held[name] for name in stored} == stored


def router_dtypes(folder: Path) -> dict[str, torch.dtype]:
    tensors = Checkpoint(folder).tensors.items()
    return {name: info.dtype for name, info in tensors if name.endswith(ROUTER)}


def of_another_release(case: Case, tmp_path: Path) -> Path:
    """The converted folder as the other kind of release would have written it."""
    folder = shutil.copytree(case.half_moeba, tmp_path / "moeba")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["router_param_dtype"] = {"model": "float32", "float32": "model"}[config["router_param_dtype"]]
    path.write_text(json.dumps(config))
    return folder


@some
def test_folder_of_another_release_goes_home(case: Case, tmp_path: Path):
    """Proven, with the same bytes; what loading in bfloat16 would round is said."""
    folder = of_another_release(case, tmp_path)
    result = export(folder, tmp_path / "back", to=case.model_type)
    assert result.certificate.verdict == "verified", result.certificate.lines()
    same_tensors(read_all(case.half_source), read_all(tmp_path / "back"))
    wide = torch.float32 in router_dtypes(folder).values()
    assert any("stored in float32 beside a model in bfloat16" in note for note in result.plan.notes) == wide


@some
def test_router_stored_in_the_models_dtype_is_the_same_either_way(case: Case, tmp_path: Path):
    folder = of_another_release(case, tmp_path)
    ids = case.ids()
    logits = []
    for source in (case.half_moeba, folder):
        model = load(MoebaForCausalLM, source)
        for name, tensor in model.named_parameters():
            if name.endswith(ROUTER):
                tensor.data = tensor.data.bfloat16().to(tensor.dtype)
        with torch.no_grad():
            logits.append(model(ids).logits)
    assert torch.equal(*logits)


def test_family_that_multiplies_in_the_models_dtype_still_differs():
    config = family_of("qwen3_moe").to_moeba(draw("qwen3_moe", 0))
    config.router_param_dtype = "float32"
    with pytest.raises(ValueError, match="router_param_dtype='float32'"):
        family_of("qwen3_moe").to_native(config)
