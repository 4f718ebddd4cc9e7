"""A config.json that an earlier version wrote is read with the meaning that it had.

`old_configs.json` holds what three versions of this project, named by their commits, wrote of small models of each
shape, converted or their own: what all of a version's files say, what each says besides, and what the version's own
model made of weights as `_fill` gives them: the first logits behind a text.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM
from moeba.conversion.binding import bind, changes_since

VERSIONS = json.loads(Path(__file__).with_name("old_configs.json").read_text())
CASES = {
    f"{version}-{shape}": ({**files["always"], **case["says"]}, case["logits"])
    for version, files in VERSIONS.items()
    for shape, case in files["shapes"].items()
}
DIVIDED = [name for name, (written, _) in CASES.items() if written.get("logits_scaling", 1.0) != 1.0]


@torch.no_grad()
def _fill(model: MoebaForCausalLM) -> MoebaForCausalLM:
    """Weights that hang on names and shapes alone."""
    for place, (_, tensor) in enumerate(sorted(model.state_dict().items())):
        if tensor.is_floating_point():
            steps = torch.arange(1, tensor.numel() + 1, dtype=torch.float64)
            wave = torch.sin(steps * (1 + place) ** 0.5)
            tensor.copy_(((wave if tensor.dim() > 1 else 1 + wave / 2) * 0.7).reshape(tensor.shape))
    return model.eval()


@torch.no_grad()
def _logits(model: MoebaForCausalLM) -> torch.Tensor:
    return model(torch.arange(1, 13)[None]).logits[0, -1]


@pytest.mark.parametrize("case", CASES)
def test_an_old_config_means_what_it_meant(case, tmp_path):
    written, logits = CASES[case]
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MoebaConfig
    assert not MoebaConfig.unknown_fields(written)
    values = json.loads(config.to_json_string(use_diff=False))
    want = {name: value for name, value in written.items() if name != "transformers_version"}
    if (divisor := want.pop("logits_scaling", 1.0)) != 1.0:
        want |= {"logit_scale": divisor, "logit_scale_operation": "divide"}
    assert {name: values.get(name) for name in want} == want

    model = _fill(MoebaForCausalLM(config))
    torch.testing.assert_close(_logits(model)[: len(logits)], torch.tensor(logits), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(_logits(again), _logits(model))


@pytest.mark.parametrize("case", DIVIDED)
def test_logits_scaling_divides(case):
    written, logits = CASES[case]
    plain = {name: value for name, value in written.items() if name != "logits_scaling"}
    divided = _logits(_fill(MoebaForCausalLM(MoebaConfig.from_dict(plain)))) / written["logits_scaling"]
    torch.testing.assert_close(divided[: len(logits)], torch.tensor(logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_certificate_stands_when_an_old_config_is_saved_again(case, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CASES[case][0]))
    bound = bind(tmp_path)
    MoebaConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert changes_since(tmp_path, bound) == ()
