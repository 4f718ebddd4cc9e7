"""Where tensors lie: models moved into aligned memory, and files that need no moving."""

from __future__ import annotations

import json

import native
import pytest
import torch
from safetensors import safe_open
from support import tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from moeba import MoebaForCausalLM, convert
from moeba.conversion.alignment import ALIGNMENT, align, is_aligned
from moeba.conversion.certificate.twin import load_model
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.shards import Recipe, lay_out
from moeba.conversion.weight_files import TensorInfo


def shifted(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """The same values, at so many bytes past an aligned address."""
    room = torch.empty(tensor.nbytes + 2 * ALIGNMENT, dtype=torch.uint8)
    start = -room.data_ptr() % ALIGNMENT + offset
    placed = room[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return placed.copy_(tensor)


def places(model: nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("offset", [4, 8, 16, 32, 40])
def test_what_lies_off_a_line_is_moved_with_its_values(offset):
    model = tiny_model("shared_sigmoid")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = shifted(tensor.data, offset)
    assert not any(place % ALIGNMENT == 0 for place in places(model).values())
    parameters = dict(model.named_parameters())
    assert align(model) is model
    assert all(is_aligned(tensor) for tensor in (*model.parameters(), *model.buffers()))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_what_is_aligned_stays_where_it_is():
    model = tiny_model("moe")
    moved = model.model.norm.weight
    moved.data = shifted(moved.data, 8)
    before = places(model)  # of the moved one too: what it left may be given out again
    after = places(align(model))
    assert {name for name, place in after.items() if place != before[name]} == {"model.norm.weight"}


def test_ties_stay_ties():
    model = tiny_model("learned_mlp")
    table = model.model.embed_tokens.weight
    table.data = shifted(table.data, 8)
    align(model)
    assert model.lm_head.weight is table and is_aligned(table)

    pair = nn.ModuleList(
        [nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)]
    )  # two parameters of one memory
    pair[0].weight.data = pair[1].weight.data = shifted(torch.ones(4, 4), 8)
    align(pair)
    with torch.no_grad():
        pair[0].weight.zero_()
    assert not pair[1].weight.any()


def test_a_token_alone_gives_the_same_bits_wherever_the_file_lay():
    """A product of one row is where processors were seen to round by the place of the matrix."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        linear = nn.Linear(48, 48, bias=False)
        row, expected = torch.randn(1, 48, generator=generator), linear.weight.detach().clone()
        for offset in (4, 8, 40):
            linear.weight.data = shifted(expected, offset)
            assert torch.equal(align(linear)(row), nn.functional.linear(row, expected))


def test_converted_folder_loads_aligned(tmp_path):
    """So `from_pretrained` of our files needs no moving; the certificate moves what other files leave astray."""
    source = native.make(tmp_path / "native", "mixtral", 0, hidden_size=32, intermediate_size=48)
    convert(source, tmp_path / "moeba", certificate=False)
    ours = MoebaForCausalLM.from_pretrained(tmp_path / "moeba")
    lines = [tensor for tensor in ours.parameters() if tensor.nbytes % ALIGNMENT == 0]
    assert len(lines) > 10 and all(map(is_aligned, lines))
    assert all(map(is_aligned, load_model(source).parameters()))

    mapped = AutoModelForCausalLM.from_pretrained(source)
    assert not all(map(is_aligned, mapped.parameters())), "stock files are aligned: align() may go"


@pytest.mark.parametrize("extra", range(0, 70, 7))
def test_tensors_of_whole_lines_begin_on_a_line(extra, tmp_path):
    """Whatever the header's length, and whatever odd tensors are among them."""
    infos = [
        TensorInfo("odd", (3,), torch.float32),
        TensorInfo("narrow", (8, 32), torch.bfloat16),
        TensorInfo("x" * extra + "wide", (4, 16), torch.float32),
        TensorInfo("bytes", (5,), torch.uint8),
        TensorInfo("more", (64,), torch.uint8),
    ]
    (shard,) = lay_out([Recipe((info,), (), tuple) for info in infos], 10**9, {"format": "pt"})
    assert len(shard.header) % ALIGNMENT == 0
    for info in infos:
        assert shard.start[info.name] % (info.dtype.itemsize if info.nbytes % ALIGNMENT else ALIGNMENT) == 0
    # Written as they come: what is read back to be hashed is read only once.
    assert [recipe.targets[0] for recipe in shard.recipes] == list(shard.tensors)

    path = tmp_path / "model.safetensors"
    path.write_bytes(shard.header + bytes(shard.nbytes))
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {info.name for info in infos}
        assert all(file.get_tensor(info.name).shape == info.shape for info in infos)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert {info.name: info for info in infos} == dict(Checkpoint(tmp_path).tensors)
