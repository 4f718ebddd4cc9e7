from pathlib import Path

import pytest
from card_folders import EXPERTS, provenance, save_model, save_tokenizer, write_json


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A dense model with a tokenizer and no records."""
    folder = tmp_path / "dense"
    save_model(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def upcycled(tmp_path: Path) -> Path:
    """A mixture of experts that was just made from a dense model."""
    folder = tmp_path / "upcycled"
    save_model(folder, **EXPERTS)
    write_json(folder, "moeba_provenance.json", provenance())
    return folder
