"""The standard library as a corpus."""

import argparse
from pathlib import Path

import pytest

from moeba.demo.corpus import LARGEST_FILE, Document, docstrings, documents, split


@pytest.fixture(scope="module")
def corpus():
    return documents()


def test_corpus_is_large_sorted_and_the_same_each_time(corpus):
    code = [document for document in corpus if document.kind == "code"]
    assert sum(len(document.text) for document in code) > 5_000_000
    order = [(document.path, document.kind) for document in corpus]
    assert order == sorted(set(order))
    assert documents("code") == code
    prose = [document for document in corpus if document.kind == "docstrings"]
    assert sum(len(document.text) for document in prose) > 500_000


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """Stands in for the standard library: three files that belong to the corpus and six that do not."""
    files = {
        "b.py": b'"""About b."""\r\nx = 1\r\n',
        "a/b.py": b"y = 2\n",
        "a.py": b'def f():\n    """About f."""\n',
        "empty.py": b"\n",
        "latin.py": "# é".encode("latin-1"),
        "table.py": b"#" * (LARGEST_FILE + 1),
        "notes.txt": b"text",
        "test/c.py": b"z = 3\n",
        "config-3/d.py": b"w = 4\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})


def test_each_kind_holds_its_documents_and_all_holds_both(small_library):
    code = [
        Document("a.py", "code", 'def f():\n    """About f."""\n'),
        Document("a/b.py", "code", "y = 2\n"),
        Document("b.py", "code", '"""About b."""\nx = 1\n'),
    ]
    prose = [Document("a.py", "docstrings", "About f."), Document("b.py", "docstrings", "About b.")]
    assert documents("code") == code
    assert documents("docstrings") == prose
    assert documents() == [code[0], prose[0], code[1], code[2], prose[1]]


def test_no_tests_packages_or_tables(corpus):
    folders = {part for document in corpus for part in document.path.split("/")[:-1]}
    assert folders.isdisjoint({"site-packages", "test", "lib2to3", "idle_test", "__pycache__"})
    assert max(len(document.text) for document in corpus) <= LARGEST_FILE
    assert not any(Path(document.path).is_absolute() for document in corpus)


def test_known_file_is_there_whole(corpus):
    texts = {(document.path, document.kind): document.text for document in corpus}
    assert texts["argparse.py", "code"] == Path(argparse.__file__).read_text(encoding="utf-8")
    assert "Command-line parsing library" in texts["argparse.py", "docstrings"]
    assert "import" not in texts["argparse.py", "docstrings"].split("\n")[0]


def test_docstrings_come_in_order_and_cleaned():
    source = '''"""Module."""
class A:
    """Class.

    Indented.
    """
    async def f(self):
        """Method."""
def g():
    "Function."
    x = """not one"""
'''
    assert docstrings(source) == "Module.\n\nClass.\n\nIndented.\n\nMethod.\n\nFunction."
    assert docstrings("def broken(:") == ""
    assert docstrings("x = 1") == ""


def test_split_keeps_each_file_on_one_side(corpus):
    train, held_out = split(corpus)
    assert len(train) + len(held_out) == len(corpus)
    assert {document.path for document in train}.isdisjoint(document.path for document in held_out)
    files = {document.path for document in corpus}
    assert 0.02 < len({document.path for document in held_out}) / len(files) < 0.09


def test_split_is_stable_and_seeded(corpus):
    assert split(corpus) == split(corpus)
    assert split(corpus, seed=1) != split(corpus)
    _, held_out = split(corpus)
    _, of_half = split(corpus[::2])
    assert of_half == [document for document in corpus[::2] if document in held_out]


@pytest.mark.parametrize("held_out", [-0.1, 1, float("nan")])
def test_bad_share_is_refused(held_out):
    with pytest.raises(ValueError, match="held_out is"):
        split([], held_out)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'prose'.*code, docstrings, all"):
        documents("prose")
