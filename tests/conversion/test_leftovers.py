"""What a refusal in the middle of the work leaves behind is said at once, not when it is in another run's way."""

from __future__ import annotations

import shutil

import native
import pytest
import torch
from safetensors.torch import load_file, save_file

from moeba import convert
from moeba.conversion import CertificateError, job
from moeba.conversion.certificate import Check

WEIGHTS = "model.safetensors"
TOLD = (
    "What was written stays in .*/.out.partial: the same run continues there, any other one needs it deleted"
)


@pytest.fixture
def source(tmp_path):
    return native.make(tmp_path / "source", "llama", num_hidden_layers=2)


def test_a_damaged_tensor_in_the_middle(source, tmp_path):
    tensors = load_file(source / WEIGHTS)
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, source / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=f"NaN or Inf.*{TOLD}") as caught:
        convert(source, tmp_path / "out", max_shard_size="8KB")
    assert "\n" not in str(caught.value)
    tensors["model.norm.weight"][0] = 1.0
    save_file(tensors, source / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match="unfinished output of another run.*delete") as caught:
        convert(source, tmp_path / "out", max_shard_size="8KB", certificate=False)
    assert "What was written" not in str(caught.value)  # said once
    shutil.rmtree(tmp_path / ".out.partial")  # as the message says
    convert(source, tmp_path / "out", max_shard_size="8KB", certificate=False)


def test_a_failed_certificate(source, tmp_path, monkeypatch):
    real = job.certify_folders

    def fail(*args, **kwargs):
        certificate = real(*args, **kwargs)
        certificate.checks.append(Check("planted", "failed", {}, "", "checkpoint"))
        return certificate

    monkeypatch.setattr(job, "certify_folders", fail)
    with pytest.raises(CertificateError, match=f"the certificate is failed: planted.*{TOLD}") as caught:
        convert(source, tmp_path / "out")
    assert caught.value.certificate.verdict == "failed"
    monkeypatch.undo()
    assert convert(source, tmp_path / "out").report.reused_shards == 1


def test_a_refusal_before_the_work_leaves_and_says_nothing(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError) as caught:
        convert(source, tmp_path / "out")
    assert "partial" not in str(caught.value)
    assert not (tmp_path / ".out.partial").exists()
