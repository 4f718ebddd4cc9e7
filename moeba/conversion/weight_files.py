"""Weight files: what the headers of a folder's safetensors or pickles say, checked before a tensor is read.

- Safetensors headers are parsed here, and must account for every byte of their file.
- Pickled weights are opened only by torch's weights-only unpickler, memory mapped; nothing in them is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from .json_files import listing, parse_json, read_json

SAFE_FILE = "model.safetensors"
SAFE_INDEX = "model.safetensors.index.json"
PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"

# The code a safetensors header uses for a dtype. The newest ones are absent from older torch releases.
DTYPES: dict[str, torch.dtype] = {
    code: getattr(torch, name)
    for code, name in {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "C64": "complex64",
        "I64": "int64",
        "I32": "int32",
        "I16": "int16",
        "I8": "int8",
        "U64": "uint64",
        "U32": "uint32",
        "U16": "uint16",
        "U8": "uint8",
        "BOOL": "bool",
    }.items()
    if hasattr(torch, name)
}

WEIGHT_SUFFIXES = frozenset(
    (
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".msgpack",
        ".gguf",
        ".onnx",
        ".ot",
        ".nemo",
        ".npz",
    )
)
_PIECE = 1 << 24  # bytes read at a time, where a tensor may come in pieces
_MAX_HEADER = 100_000_000  # bytes; the limit the safetensors library itself sets


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows_a_piece(self) -> int:
        """How much of the first dimension is read at a time; at least one."""
        return max(1, _PIECE * self.shape[0] // self.nbytes) if self.shape and self.nbytes else 1


class SafetensorsFile:
    """One .safetensors file with its header checked: an 8-byte length, a JSON header, and the data.

    Raises:
        ValueError: the header is malformed, or it does not account for every byte of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = _read_header(path)
        self.header_size = 8 + len(header)
        entries = _parse_header(path, header)
        self.tensors = {info.name: info for info, _ in entries}
        self._start = {info.name: self.header_size + begin for info, begin in entries}

    def read(self, name: str) -> torch.Tensor:
        with self.path.open("rb") as file:
            file.seek(self._start[name])
            return self._next(file, name, self.tensors[name].shape)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor, some of its rows at a time."""
        info = self.tensors[name]
        if info.nbytes <= _PIECE or not info.shape:
            yield self.read(name)
            return
        with self.path.open("rb") as file:
            file.seek(self._start[name])
            for row in range(0, info.shape[0], info.rows_a_piece):
                count = min(info.rows_a_piece, info.shape[0] - row)
                yield self._next(file, name, (count, *info.shape[1:]))

    def _next(self, file: BinaryIO, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        # Read rather than mapped: a file truncated meanwhile is an error here, and not a dead process.
        tensor = torch.empty(shape, dtype=self.tensors[name].dtype)
        buffer = tensor.reshape(-1).view(torch.uint8).numpy()
        if file.readinto(buffer.data) != buffer.nbytes:  # type: ignore[attr-defined]
            raise ValueError(f"{self.path} changed while it was being read: {name} is cut short")
        return tensor


class PickledFile:
    """One file of `torch.save`, opened memory mapped by the weights-only unpickler.

    Raises:
        ValueError: the file needs more than that unpickler allows, or holds anything but named dense tensors.
    """

    header_size = 0  # there is no header to tell two files apart by

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values = _load_pickle(path)
        self.tensors = {
            name: TensorInfo(name, tuple(value.shape), value.dtype) for name, value in self._values.items()
        }

    def read(self, name: str) -> torch.Tensor:
        return self._values[name].detach().clone(memory_format=torch.contiguous_format)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor, some of its rows at a time."""
        info = self.tensors[name]
        if info.nbytes <= _PIECE or not info.shape:
            yield self.read(name)
            return
        for piece in self._values[name].detach().split(info.rows_a_piece):
            yield piece.clone(memory_format=torch.contiguous_format)


WeightFile = SafetensorsFile | PickledFile


def open_weights(folder: Path) -> list[WeightFile]:
    """The weight files of `folder`, sorted by name. Safetensors win over pickles, as in transformers."""
    for single, index, kind in (
        (SAFE_FILE, SAFE_INDEX, SafetensorsFile),
        (PICKLE_FILE, PICKLE_INDEX, PickledFile),
    ):
        has_single, has_index = (folder / single).is_file(), (folder / index).is_file()
        if has_single and has_index:
            raise ValueError(f"{folder} has both {single} and {index}: remove the one that is out of date")
        if has_single:
            return _open_all([folder / single], kind)
        if has_index:
            return _open_sharded(folder / index, kind)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    found = f"found only {listing(others)}" if others else "found no weights at all"
    raise ValueError(f"{folder} needs {SAFE_FILE}, {PICKLE_FILE}, or the index of a sharded one: {found}")


def _open_all(paths: Iterable[Path], kind: Callable[[Path], WeightFile]) -> list[WeightFile]:
    files, problems = [], []
    for path in paths:
        try:
            files.append(kind(path))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(listing(problems))
    return files


def _open_sharded(index: Path, kind: Callable[[Path], WeightFile]) -> list[WeightFile]:
    weight_map = read_weight_map(index)
    names = sorted(set(weight_map.values()))
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(
            f"{index} names files that are not there: {listing(missing)}; download or copy them as well"
        )
    files = _open_all([index.parent / name for name in names], kind)
    if problems := _disagreements(weight_map, files):
        raise ValueError(f"{index} and its files disagree: {listing(problems)}")
    return files


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name to file name, from an index; every file name is a plain one."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map from tensor names to file names")
    if elsewhere := sorted({str(name) for name in weight_map.values() if not _is_plain(name)}):
        raise ValueError(f"{index} may only name files beside it, not: {listing(elsewhere)}")
    return weight_map


def _is_plain(name: object) -> bool:
    # A plain name may still be a link out of the folder: the Hugging Face cache is made of those.
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\:\0]", name)


def _disagreements(weight_map: Mapping[str, str], files: Sequence[WeightFile]) -> list[str]:
    """Every tensor that is not exactly once in the files, and where the index puts it."""
    found: dict[str, list[str]] = {}
    for file in files:
        for name in file.tensors:
            found.setdefault(name, []).append(file.path.name)
    problems = [f"{name} is missing from {file}" for name, file in weight_map.items() if name not in found]
    for name, holders in found.items():
        if len(holders) > 1:
            problems.append(f"{name} is in {' and '.join(holders)}")
        elif name not in weight_map:
            problems.append(f"{name} is in {holders[0]} but not in the index")
        elif holders[0] != weight_map[name]:
            problems.append(f"{name} is in {holders[0]}, the index says {weight_map[name]}")
    return problems


def _read_header(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix == b"version ":
            raise ValueError(
                f"{path} is a Git LFS pointer and not the weights: run `git lfs pull` in its folder"
            )
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(
                f"{path} is truncated or no safetensors file: expected {8 + length} bytes or more, got {size}"
            )
        return file.read(length)


def _parse_header(path: Path, header: bytes) -> list[tuple[TensorInfo, int]]:
    """Every tensor with the offset of its first byte in the data, in that order; they fill the file."""
    fields = parse_json(header, f"the header of {path}")
    metadata = fields.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError(
            f"{path} has a wrong header: its __metadata__ is {str(metadata)[:80]}, and not texts by name"
        )
    if malformed := [f"{name}: {entry}"[:200] for name, entry in fields.items() if not _is_entry(entry)]:
        raise ValueError(f"{path} has malformed or unknown header entries: {listing(malformed)}")
    spans = sorted((*entry["data_offsets"], name) for name, entry in fields.items())
    entries, problems, end = [], [], 0
    for begin, stop, name in spans:
        info = TensorInfo(name, tuple(fields[name]["shape"]), DTYPES[fields[name]["dtype"]])
        if begin != end:
            problems.append(f"{name} starts at byte {begin} of the data, expected {end}")
        if stop - begin != info.nbytes:
            problems.append(f"{name} has {stop - begin} bytes, its shape and dtype need {info.nbytes}")
        entries.append((info, begin))
        end = stop
    if problems:
        raise ValueError(f"{path} has a wrong header: {listing(problems)}")
    expected, actual = 8 + len(header) + end, path.stat().st_size
    if expected != actual:
        raise ValueError(
            f"{path} is damaged: expected {expected} bytes, got {actual}; download or copy it again"
        )
    return entries


def _is_entry(entry: object) -> bool:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [begin, end]}:
            return code in DTYPES and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    return False


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    advice = (
        "if you trust it, load it yourself and save it as model.safetensors (safetensors.torch.save_file)"
    )
    try:
        values = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler lets through whatever a malformed file provokes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not plain tensors in torch's zip format ({reason}): {advice}") from error
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path} must hold tensors by name, not a {type(values).__name__}: {advice}")
    if others := [str(name) for name, value in values.items() if not _is_named_tensor(name, value)]:
        raise ValueError(f"{path} holds entries that are not dense tensors: {listing(others)}; {advice}")
    return dict(values)


def _is_named_tensor(name: object, value: object) -> bool:
    if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
        return False
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta
