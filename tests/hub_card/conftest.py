from pathlib import Path

import pytest
from card_folders import (
    EXPERTS,
    certificate,
    evaluation,
    provenance,
    save_model,
    save_tokenizer,
    save_training,
    source,
    surgery,
    write_json,
)


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


@pytest.fixture
def trained(upcycled: Path) -> Path:
    """The same after a training with router statistics."""
    save_training(upcycled)
    return upcycled


@pytest.fixture
def merged(upcycled: Path) -> Path:
    """Two models made into one, measured and evaluated."""
    one, two = (
        source(repo_id="user/one", license="apache-2.0"),
        source(repo_id="user/two", license="llama3.2"),
    )
    record = provenance("merge", source=one, sources=[two], lossy=True)
    record["target"] = {"files": certificate(upcycled)["target"]["files"]}
    write_json(upcycled, "moeba_provenance.json", record)
    write_json(upcycled, "surgery.json", surgery())
    write_json(upcycled, "evaluation.json", evaluation(upcycled))
    return upcycled
