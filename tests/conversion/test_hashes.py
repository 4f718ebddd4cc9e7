from __future__ import annotations

import hashlib
import os
import threading
import time

import native
import pytest

from moeba import convert
from moeba.conversion import hashes
from moeba.conversion.hashes import RunningHash, hashing, remember, sha256_of


@pytest.fixture
def read(monkeypatch):
    """The sizes of what is read to be hashed."""
    sizes: list[int] = []
    original = hashes._hash_rest

    def watch(file, digest, stop):
        sizes.append(os.fstat(file.fileno()).st_size - file.tell())
        return original(file, digest, stop)

    monkeypatch.setattr(hashes, "_hash_rest", watch)
    return sizes


def settle():
    time.sleep(2 * hashes._TICK_NS / 1e9)


def test_file_is_read_once_as_long_as_it_stays(tmp_path, read):
    path = tmp_path / "f"
    path.write_bytes(b"a" * 1000)
    settle()
    expected = hashlib.sha256(b"a" * 1000).hexdigest()
    assert sha256_of(path) == sha256_of(path) == expected and read == [1000]
    status = path.stat()
    settle()
    path.write_bytes(b"b" * 1000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sha256_of(path) == hashlib.sha256(b"b" * 1000).hexdigest() and read == [1000, 1000]


def test_fresh_file_is_read_again(tmp_path, read):
    path = tmp_path / "f"
    for letter in b"abc":
        path.write_bytes(bytes([letter]) * 10)
        assert sha256_of(path) == hashlib.sha256(bytes([letter]) * 10).hexdigest()
    assert read == [10, 10, 10]


def test_what_was_hashed_while_written_is_not_read(tmp_path, read, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"a")
    remember(path, "small")
    assert sha256_of(path) != "small"
    monkeypatch.setattr(hashes, "_SMALL", 1)
    remember(path, "known")
    assert sha256_of(path) == "known"
    settle()
    path.write_bytes(b"b")
    assert sha256_of(path) == hashlib.sha256(b"b").hexdigest()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0]])
def test_hash_of_a_file_written_in_any_order(tmp_path, order, monkeypatch):
    monkeypatch.setattr(hashes, "_CHUNK", 7)
    parts = [os.urandom(size) for size in (20, 0, 33, 5)]
    starts = [sum(map(len, parts[:i])) for i in range(4)]
    with (tmp_path / "f").open("w+b") as file, RunningHash() as running:
        for i in order:
            running.update(starts[i], memoryview(parts[i]))
            file.seek(starts[i])
            file.write(parts[i])
        running.wait()
        file.flush()
        assert running.finish(file) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_hashing_goes_on_beside_and_stops_with_its_block(tmp_path, read, monkeypatch):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    settle()
    with hashing([*paths, tmp_path / "missing"]):
        assert [sha256_of(path) for path in paths] == [
            hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
        ]
    assert read == [100, 100]

    started, go_on = threading.Event(), threading.Event()
    original = hashes._hash_rest

    def slow(file, digest, stop):
        started.set()
        go_on.wait(10)
        return original(file, digest, stop)

    monkeypatch.setattr(hashes, "_hash_rest", slow)
    for path in paths:
        path.write_bytes(b"new")
    settle()
    with pytest.raises(RuntimeError, match="stopped"), hashing(paths):
        assert started.wait(10)
        threading.Timer(0.05, go_on.set).start()
        raise RuntimeError("stopped")
    assert read == [100, 100, 3]  # and not the second


def test_conversion_reads_its_source_once_to_hash_it(tmp_path, read, monkeypatch):
    monkeypatch.setattr(hashes, "_SMALL", 1)
    source = native.make(tmp_path / "native", "llama")
    weights = source / "model.safetensors"
    settle()
    result = convert(source, tmp_path / "out")
    assert result.certificate is not None and result.certificate.verdict == "verified"
    target = tmp_path / "out" / "model.safetensors"
    assert result.certificate.source["files"] == {
        weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()
    }
    assert result.certificate.target["files"] == {
        target.name: hashlib.sha256(target.read_bytes()).hexdigest()
    }
    assert sum(read) == weights.stat().st_size


def test_source_that_changes_meanwhile_is_refused(tmp_path):
    source = native.make(tmp_path / "native", "llama")
    weights = source / "model.safetensors"
    content = weights.read_bytes()

    def change(done, total, what):
        if done == total:
            weights.write_bytes(content)

    with pytest.raises(ValueError, match="native changed while it was read: run again"):
        convert(source, tmp_path / "out", certificate=False, progress=change)
    assert not (tmp_path / "out").exists()
