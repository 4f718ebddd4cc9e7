"""What is written beside a model: complete, readable by the Hub's own library, and of the weights that lie there."""

import json
import math
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from moeba.conversion import convert
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.provenance import EVALUATION_FILE
from moeba.evaluation import Evaluation
from moeba.evaluation.results import save

FILES = {"model.safetensors": "ab" * 32}
FIELDS = {"text": "text", "join": None}
MEASURED = Evaluation(
    model="moe",
    task="text-generation",
    metrics={"perplexity": 12.5, "loss": 2.5257, "bits_per_byte": None, "token_accuracy": 0.25},
    errors={},
    counts={"tokens": 9, "bytes": None},
    dataset={"id": "me/words", "config": "en", "split": "test", "revision": "c0ffee", "fields": FIELDS},
    settings={"window": 64, "stride": 32, "max_tokens": None, "start_tokens": [0]},
    versions={"moeba": "0.1.0", "torch": "2.13.0"},
    date="2026-01-02T03:04:05+00:00",
)
VALIDATION = replace(MEASURED, dataset={**MEASURED.dataset, "split": "validation"})
LOCAL = replace(MEASURED, dataset={"name": "a.txt", "sha256": "00", "fields": FIELDS})


def read(folder):
    return json.loads((folder / EVALUATION_FILE).read_text())


def hub_files(folder):
    return sorted(path.name for path in (folder / ".eval_results").iterdir())


def test_the_record_holds_every_figure_and_setting(tmp_path):
    save(MEASURED, tmp_path, FILES)
    assert read(tmp_path) == {"format_version": 1, "files": FILES, "results": [vars(MEASURED)]}


def test_the_hubs_library_reads_the_results(tmp_path):
    _, hub = save(MEASURED, tmp_path, FILES)
    assert hub == tmp_path / ".eval_results" / "me-words-en-test-text-generation.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(hub.read_text()))
    assert [(entry.task_id, entry.value) for entry in entries] == [
        ("perplexity", 12.5),
        ("token_accuracy", 0.25),
    ]
    for entry in entries:
        assert (entry.dataset_id, entry.dataset_revision, entry.date) == ("me/words", "c0ffee", MEASURED.date)
        assert entry.notes == "config en, split test, window 64, stride 32, start tokens [0], moeba 0.1.0"


def test_a_newer_result_replaces_the_older_and_others_stay(tmp_path):
    for evaluation in (MEASURED, VALIDATION, LOCAL, replace(MEASURED, metrics={"perplexity": 11.0})):
        written = save(evaluation, tmp_path, FILES)
        assert len(written) == (1 if evaluation is LOCAL else 2), "the Hub is told of its own datasets only"
    found = [(r["dataset"].get("split"), r["metrics"]["perplexity"]) for r in read(tmp_path)["results"]]
    assert found == [("validation", 12.5), (None, 12.5), ("test", 11.0)]
    assert hub_files(tmp_path) == [
        "me-words-en-test-text-generation.yaml",
        "me-words-en-validation-text-generation.yaml",
    ]
    assert not list(tmp_path.rglob("*.tmp"))


def test_results_of_other_weights_go_and_what_a_person_added_stays(tmp_path):
    for evaluation in (MEASURED, VALIDATION, LOCAL):
        save(evaluation, tmp_path, FILES)
    (tmp_path / ".eval_results" / "mine.yaml").write_text("[]")
    trained = {"model.safetensors": "cd" * 32}
    save(VALIDATION, tmp_path, trained)
    assert read(tmp_path) == {"format_version": 1, "files": trained, "results": [vars(VALIDATION)]}
    assert hub_files(tmp_path) == ["me-words-en-validation-text-generation.yaml", "mine.yaml"]


def test_an_infinite_figure_is_left_empty(tmp_path):
    _, hub = save(replace(MEASURED, metrics={"perplexity": math.inf, "accuracy": 0.5}), tmp_path, FILES)
    assert read(tmp_path)["results"][0]["metrics"] == {"perplexity": None, "accuracy": 0.5}
    assert [entry["dataset"]["task_id"] for entry in yaml.safe_load(hub.read_text())] == ["accuracy"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format_version": 2, "files": {}, "results": []}', '{"format_version": 1}']
)
def test_a_record_that_cannot_be_added_to_is_left_alone(tmp_path, text):
    (tmp_path / EVALUATION_FILE).write_text(text)
    with pytest.raises(ValueError, match=EVALUATION_FILE):
        save(MEASURED, tmp_path, FILES)
    assert (tmp_path / EVALUATION_FILE).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [EVALUATION_FILE]


def test_figures_do_not_travel_to_another_model(llama, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in llama.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    save(MEASURED, source, Checkpoint(source).sha256())
    convert(source, tmp_path / "moeba", certificate=False)
    assert not (tmp_path / "moeba" / EVALUATION_FILE).exists()
    assert not (tmp_path / "moeba" / ".eval_results").exists()
