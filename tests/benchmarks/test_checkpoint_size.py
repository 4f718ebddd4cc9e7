"""The benchmark of large checkpoints, on small ones: what it writes, what it measures, and its table."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from moeba.conversion.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module("checkpoint_size")
    sys.path.pop(0)
    del sys.modules["checkpoint_size"]


def test_checkpoint_that_stock_transformers_reads(benchmark, tmp_path):
    config = benchmark.llama_config(4 * MEGABYTE)
    benchmark.make_llama(tmp_path / "a", config, seed=0, max_shard_size="1MB")
    size = benchmark.weight_bytes(tmp_path / "a")
    assert 4 * MEGABYTE <= size < 5 * MEGABYTE and len(list((tmp_path / "a").glob("*.safetensors"))) > 3
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert model.dtype == torch.bfloat16 and not any(loading.values())
    tensors = Checkpoint(tmp_path / "a")
    first, second = (tensors.read(f"model.layers.{i}.mlp.up_proj.weight").float() for i in (0, 1))
    assert not torch.equal(first, second) and 0.015 < first.std() < 0.025


@pytest.mark.parametrize("nbytes", [2e9, 12e9, 30e9])
def test_size_is_what_was_asked_for(benchmark, nbytes):
    config = benchmark.llama_config(nbytes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert nbytes <= 2 * model.num_parameters() < 1.1 * nbytes


def test_memory_and_bytes_of_a_process(benchmark, tmp_path):
    code = f"x = bytearray(200_000_000); open({str(tmp_path / 'f')!r}, 'wb').write(x[:5_000_000])"
    usage = benchmark.measure([sys.executable, "-c", code], tmp_path / "log")
    assert 200 * MEGABYTE < usage.memory < 250 * MEGABYTE
    assert usage.anonymous <= usage.memory and 5 * MEGABYTE <= usage.written < 6 * MEGABYTE
    with pytest.raises(RuntimeError, match="failed:\nno such thing"):
        benchmark.measure([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "log")


def cells_of(printed):
    return [cell.strip() for cell in printed.strip(" |\n").split("|")]


@pytest.fixture
def dense(benchmark, tmp_path):
    benchmark.make_llama(tmp_path / "dense", benchmark.llama_config(2 * MEGABYTE), seed=0)
    return tmp_path / "dense"


def test_row_of_what_copies(benchmark, dense, tmp_path, capsys):
    code = "import shutil, sys; shutil.copytree(*sys.argv[1:3])"
    target = tmp_path / "target"
    bench = benchmark.Bench(tmp_path, 2, ("cold", "warm"), (False, True))
    bench.compare("copytree", dense, target, [sys.executable, "-c", code, dense, target])
    rows = [cells_of(line) for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows] == [
        ["copytree", certificate, cache] for certificate in ("no", "yes") for cache in ("cold", "warm")
    ]
    assert {len(row) for row in rows} == {len(benchmark.HEADINGS)}
    assert target.is_dir() and not (tmp_path / "copy").exists()


@pytest.mark.slow
def test_whole_table(benchmark, tmp_path, capsys):
    folder = tmp_path / "new"
    benchmark.main(
        ["--gigabytes", "0.002", "--folder", str(folder), "--certificate", "no", "--cache", "warm"]
    )
    rows = [cells_of(line) for line in capsys.readouterr().out.splitlines()[4:]]
    assert [row[0] for row in rows] == ["convert", "upcycle", "export"]
    assert all(0.1 < float(row[benchmark.HEADINGS.index("peak GB")]) < 2.5 for row in rows)
    assert not folder.exists()
