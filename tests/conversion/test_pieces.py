from __future__ import annotations

import weakref

import native
import pytest
import torch
from safetensors.torch import save_file

from moeba import MoebaConfig
from moeba.conversion import weight_files
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.families import family_of
from moeba.conversion.pieces import pieces, read_pieces, same_bytes, whole
from moeba.conversion.plan import PlannedTensors, plan_export, plan_import
from moeba.conversion.weight_files import TensorInfo


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(weight_files, "_PIECE", 64)


def folder_of(path, tensors):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    return Checkpoint(path)


def test_pieces_make_up_the_tensor(tmp_path, small_pieces):
    tensors = {
        "wide": torch.randn(5, 40),
        "tall": torch.randn(50, 3).bfloat16(),
        "vector": torch.arange(33),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "flat": torch.empty(4, 0),
    }
    opened = folder_of(tmp_path / "m", tensors)
    for name, expected in tensors.items():
        found = list(opened.pieces(name))
        assert torch.equal(opened.read(name), expected) and same_bytes(found, [expected])
        assert expected.dim() == 0 or torch.equal(whole(iter(found), opened.tensors[name]), expected)
        assert all(len(piece) == 1 or piece.nbytes <= 64 for piece in found if piece.dim())
    assert [len(list(opened.pieces(name))) for name in tensors] == [5, 5, 5, 1, 1, 1]


def test_every_bad_value_is_counted_whatever_the_pieces(tmp_path, small_pieces):
    bad = torch.zeros(40, 8)
    bad[0, 3] = bad[20, 1] = float("nan")
    bad[39, 7] = float("inf")
    opened = folder_of(tmp_path / "m", {"bad": bad})
    for read in (opened.read, lambda name: list(opened.pieces(name))):
        with pytest.raises(ValueError, match=r"bad in .*model\.safetensors holds 3 NaN or Inf values of 320"):
            read("bad")


def test_file_that_shrinks_is_an_error(tmp_path, small_pieces):
    opened = folder_of(tmp_path / "m", {"w": torch.randn(4000, 8)})
    found = opened.pieces("w")
    next(found)
    with (tmp_path / "m" / "model.safetensors").open("r+b") as file:
        file.truncate(60_000)
    with pytest.raises(ValueError, match="w is cut short"):
        list(found)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_same_bytes_however_they_are_cut(dtype):
    value = torch.randint(0, 100, (13, 7)).to(dtype)
    other = value.clone()
    other[12, 6] += 1
    for cut in (1, 3, 13):
        assert same_bytes(value.split(cut), value.split(5))
        assert not same_bytes(value.split(cut), other.split(5))
        assert not same_bytes(value.split(cut), value[:12].split(5))
    assert same_bytes(value.T.split(2), [value.T]) and not same_bytes([value], [value.T])
    assert same_bytes([], [torch.empty(0)]) and not same_bytes([], [value])
    assert not same_bytes([torch.tensor(0.0)], [torch.tensor(-0.0)])


class Watched:
    """A source that knows how many bytes of what it read are alive."""

    def __init__(self, source):
        self.source, self.tensors = source, source.tensors
        self.alive: dict[int, int] = {}
        self.most = 0

    def read(self, name):
        return self._watch(self.source.read(name))

    def pieces(self, name):
        return map(self._watch, read_pieces(self.source, name))

    def _watch(self, tensor):
        # The storage lives as long as any view of it.
        storage = tensor.untyped_storage()
        self.alive[id(storage)] = tensor.nbytes
        weakref.finalize(storage, self.alive.pop, id(storage))
        self.most = max(self.most, sum(self.alive.values()))
        return tensor


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("mixtral", {"hidden_size": 32, "intermediate_size": 64}),
        ("qwen2_moe", {"hidden_size": 32, "moe_intermediate_size": 64}),
        ("gpt_oss", {}),
    ],
)
def test_experts_pass_one_at_a_time_both_ways(tmp_path, model_type, sizes, monkeypatch):
    folder = native.make(tmp_path / "native", model_type, **sizes)
    monkeypatch.setattr(weight_files, "_PIECE", 1024)
    checkpoint = Checkpoint(folder)
    plan, config = plan_import(checkpoint)
    back = plan_export(PlannedTensors(plan), config, family_of(model_type), bare_names=plan.bare_names)
    streamed = [recipe for recipe in plan.recipes if recipe.streams]
    assert len(streamed) >= 2 * len(config.sparse_layers)
    for recipe in streamed:
        source = Watched(checkpoint)
        (output,) = recipe.run(source)
        (info,) = recipe.targets
        shapes = [tuple(piece.shape) for piece in output]
        assert shapes == [(1, *info.shape[1:])] * info.shape[0]
        if len(recipe.sources) > 1:  # where experts are stored one by one
            expert = info.nbytes / info.shape[0]
            assert expert <= source.most <= 2 * expert
    for recipe in back.recipes:
        outputs = recipe.run(PlannedTensors(plan))
        for info, output in zip(recipe.targets, outputs, strict=True):
            stored = checkpoint.tensors[info.name]
            assert info == TensorInfo(info.name, stored.shape, stored.dtype)
            assert same_bytes(pieces(output), checkpoint.pieces(info.name)), info.name


def test_stacks_are_what_the_rows_say(tmp_path):
    checkpoint = Checkpoint(native.make(tmp_path / "native", "mixtral"))
    plan, config = plan_import(checkpoint)
    assert isinstance(config, MoebaConfig)
    prefix = "model.layers.0.block_sparse_moe.experts"
    stacked = PlannedTensors(plan).read("model.layers.0.mlp.experts.gate_up_proj")
    expected = [
        torch.cat([checkpoint.read(f"{prefix}.{expert}.{part}.weight") for part in ("w1", "w3")])
        for expert in range(config.num_experts)
    ]
    assert torch.equal(stacked, torch.stack(expected))
