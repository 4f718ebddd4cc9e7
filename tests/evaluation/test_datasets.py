"""Rows from files of every kind; what is wrong with them is said in one sentence."""

import hashlib
import json

import pytest

datasets = pytest.importorskip("datasets")

from moeba.evaluation.datasets import load_rows, texts_of  # noqa: E402
from moeba.surgery.running.texts import Texts  # noqa: E402

ROWS = [{"text": "one, “two”", "n": 1}, {"text": "three\nfour", "n": 2}, {"text": "", "n": 3}]


def write(path):
    match path.suffix:
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(ROWS), encoding="utf-8")
        case ".parquet":
            datasets.Dataset.from_list(ROWS).to_parquet(path)
        case _:
            separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
            datasets.Dataset.from_list(ROWS[:2]).to_csv(path, sep=separator)
    return path


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_files_of_rows(tmp_path, suffix, streaming):
    path = write(tmp_path / f"rows{suffix}")
    rows = load_rows(path, streaming=streaming)
    expected = [row["text"] for row in (ROWS[:2] if suffix in (".csv", ".tsv") else ROWS)]
    assert list(texts_of(rows, "text")) == expected
    assert list(texts_of(rows, "text")) == expected, "the second model reads the same"
    assert rows.count == (None if streaming else len(expected))
    assert rows.source == {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert list(texts_of(load_rows(path, streaming=streaming, max_rows=1), "text")) == expected[:1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_file_is_one_document(tmp_path, streaming):
    text = "a line\n\nanother, é\n" * 3
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert list(texts_of(load_rows(tmp_path / "a.txt", streaming=streaming), "text")) == [text]


@pytest.mark.parametrize("text", [b"one\r\ntwo\r\n\r\nthree", b"old\rlines\n", b"\xef\xbb\xbfmarked\r\n"])
def test_a_text_file_is_read_as_the_bytes_on_the_disk(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text)
    (found,) = texts_of(load_rows(tmp_path / "a.txt"), "text")
    assert found.encode() == text
    assert Texts.read([tmp_path / "a.txt"]).texts[0].encode() == text  # and so is a calibration text
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="a.txt could not be read: .*utf-8"):
        load_rows(tmp_path / "a.txt")


def test_joined_rows_are_one_document(tmp_path):
    rows = load_rows(write(tmp_path / "rows.jsonl"))
    assert list(texts_of(rows, "text", "\n\n")) == ["one, “two”\n\nthree\nfour\n\n"]


def test_fields_that_are_not_there_or_no_text(tmp_path):
    rows = load_rows(write(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="row 0 has no field 'content': it has text, n"):
        list(texts_of(rows, "content"))
    with pytest.raises(ValueError, match="row 0: 'n' must be a text, not int 1"):
        list(texts_of(rows, "n"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_file(tmp_path, streaming):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match="could not be read: "):
        list(load_rows(path, streaming=streaming))


def test_what_is_no_dataset(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    for name, says in (
        ("a.pdf", "a file ending in '.pdf': give a file ending in .txt"),
        (".", "is a folder"),
    ):
        with pytest.raises(ValueError, match=says):
            load_rows(tmp_path / name)
    with pytest.raises(ValueError, match="neither a file here nor a Hub id"):
        load_rows(str(tmp_path / "missing.txt"))
    with pytest.raises(ValueError, match="is a local file, which has no config or split"):
        load_rows(write(tmp_path / "rows.jsonl"), config="a", split="test")


def test_a_hub_dataset_out_of_reach():
    """The tests run offline: what is not in the cache is not there."""
    with pytest.raises(
        ValueError, match="me/nothing-of-the-kind could not be read: .*me/nothing-of-the-kind"
    ):
        load_rows("me/nothing-of-the-kind")
