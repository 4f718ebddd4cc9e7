"""Reading a checkpoint folder without loading it.

- Shapes and dtypes come from the headers of the weight files, so a plan can be built and shown before a single tensor
  is read.
- A tensor is read on demand, into memory of its own, in its stored dtype. NaN and Inf are refused then.
- What is wrong with a folder is said once, with every offender listed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)

from ..configuration import MoebaConfig
from .families import family_of_config
from .hashes import sha256_of
from .inputs import Inputs
from .json_files import listing, read_json
from .paths import expanded
from .pieces import TensorSource, read_pieces
from .selection import HUB_PATTERNS
from .sizes import check_names, check_sizes
from .weight_files import (
    DTYPES,
    PICKLE_FILE,
    PICKLE_INDEX,
    SAFE_FILE,
    SAFE_INDEX,
    TensorInfo,
    open_weights,
    read_weight_map,
)

__all__ = [
    "DTYPES",
    "PICKLE_FILE",
    "PICKLE_INDEX",
    "SAFE_FILE",
    "SAFE_INDEX",
    "Checkpoint",
    "TensorInfo",
    "TensorSource",
    "count_nonfinite",
    "listing",
    "read_json",
    "read_pieces",
    "resolve",
    "sha256_of",
]

_CHUNK = 1 << 24  # elements looked at, at a time
_SIDE_PATTERNS = ["*.json", "README.md", *HUB_PATTERNS]


class Checkpoint:
    """A model folder opened for reading: config, weights, and the files that travel with them.

    Opening reads `config.json` and the headers of the weight files; no tensor is loaded until `read` asks.

    Args:
        folder: a local folder; `resolve` turns a Hub id into one.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is not a complete, unambiguous checkpoint; the message lists what is wrong.
    """

    folder: Path
    config: dict[str, Any]  # config.json as written, nothing added
    tensors: dict[str, TensorInfo]  # in the order of the files, and of the data inside them
    weight_files: tuple[Path, ...]  # sorted by name
    inputs: Inputs  # the files that tensors are read from, as they were when it was opened

    def __init__(self, folder: str | Path) -> None:
        self.folder = expanded(folder)
        if not self.folder.exists():
            raise FileNotFoundError(f"there is no folder {self.folder}")
        if not self.folder.is_dir():
            raise ValueError(
                f"{self.folder} is a file: give the folder that holds config.json and the weights"
            )
        self.config = _read_config(self.folder)
        files = open_weights(self.folder)
        self._home = {name: file for file in files for name in file.tensors}
        self.tensors = {name: file.tensors[name] for name, file in self._home.items()}
        check_sizes(self.config, self.tensors, f"{self.folder}/config.json")
        self.weight_files = tuple(file.path for file in files)
        self._header_sizes = {file.path: file.header_size for file in files}
        self._sha256: dict[str, str] = {}
        self.inputs = Inputs(self.weight_files)

    def read(self, name: str) -> torch.Tensor:
        """The tensor called `name`, bit for bit as stored, contiguous on the CPU and shared with nothing.

        Raises:
            KeyError: the checkpoint has no such tensor.
            ValueError: the tensor holds NaN or Inf, or its file changed since the checkpoint was opened.
        """
        if name not in self._home:
            raise KeyError(f"{name} is not in {self.folder}")
        tensor = self._home[name].read(name)
        if bad := count_nonfinite(tensor):
            raise self._damaged(name, bad)
        return tensor

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """What `read` reads, in pieces along the first dimension."""
        found = self._home[name].pieces(name)
        for piece in found:
            if bad := count_nonfinite(piece):
                raise self._damaged(name, bad + sum(count_nonfinite(other) for other in found))
            yield piece

    def _damaged(self, name: str, bad: int) -> ValueError:
        where, count = self._home[name].path, math.prod(self.tensors[name].shape)
        return ValueError(f"{name} in {where} holds {bad} NaN or Inf values of {count}: the file is damaged")

    def sha256(self) -> dict[str, str]:
        """SHA-256 (hex) of every weight file by name, sorted. Reads each file once and remembers it."""
        if not self._sha256:
            self._sha256 = {path.name: sha256_of(path) for path in self.weight_files}
        return dict(self._sha256)

    def fingerprint(self) -> str:
        """A cheap identity (hex) that changes when the config or any weight file changes; reads headers only.

        A copied or downloaded-again folder has another fingerprint: modification times are part of it.
        """
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path, header_size in self._header_sizes.items():
            status = path.stat()
            digest.update(json.dumps([path.name, status.st_size, status.st_mtime_ns]).encode())
            with path.open("rb") as file:
                digest.update(file.read(header_size))
        return digest.hexdigest()


def resolve(path_or_repo_id: str | Path, revision: str | None = None, *, any_type: bool = False) -> Path:
    """A local folder for a path or a Hub id; a Hub model is downloaded into the Hugging Face cache.

    Only top-level files are fetched: the config and side files, then the safetensors weights, and the pickled
    ones only where there are no safetensors.

    Args:
        path_or_repo_id: an existing folder, or `user/name`. A folder wins over a Hub id of the same name.
        revision: branch, tag or commit on the Hub; default the main branch. Ignored for a folder.
        any_type: fetch a model of any type. By default config.json comes alone at first, and a model that could
            not be converted is refused before its weights are downloaded.

    Raises:
        ValueError: it is neither a folder nor a model that can be fetched, or its type is not supported.
    """
    if not str(path_or_repo_id).strip():
        raise ValueError("the path is empty: give the model's folder, or . for this one")
    path = expanded(path_or_repo_id)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file: give the folder that holds config.json and the weights")
    if not isinstance(path_or_repo_id, str) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path_or_repo_id):
        raise ValueError(f"{path_or_repo_id} is neither a folder here nor a Hub id of the form user/name")
    try:
        return _download(path_or_repo_id, revision, any_type)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ConnectionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path_or_repo_id} is no folder here and could not be fetched from the Hub: {reason}"
        ) from error


def check_loadable(folder: Path) -> None:
    """Refuse, before a library builds anything from it, a config that its weights do not bear out.

    For folders that only transformers need be able to load: other weights than safetensors are not looked at.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    config = read_json(path)
    check_names(config, str(path))
    files = open_weights(folder) if any((folder / name).is_file() for name in (SAFE_FILE, SAFE_INDEX)) else []
    tensors = {name: info for file in files for name, info in file.tensors.items()}
    check_sizes(config, tensors or None, str(path))


def count_nonfinite(tensor: torch.Tensor) -> int:
    """How many values of `tensor` are NaN or Inf; 0 for integer and boolean tensors."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return 0
    count = 0
    for chunk in tensor.detach().reshape(-1).split(_CHUNK):
        if chunk.element_size() == 1:
            chunk = chunk.float()  # torch has no comparisons for 8-bit floats
        # One pass without a temporary: NaN propagates through both extremes, and Inf is one of them.
        if not all(math.isfinite(extreme) for extreme in torch.aminmax(chunk)):
            count += int((~torch.isfinite(chunk)).sum())
    return count


def _read_config(folder: Path) -> dict[str, Any]:
    # transformers applies an adapter it finds beside the weights; the weights alone would be another model.
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds a PEFT adapter: merge it (merge_and_unload) and save the full model first"
        )
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: give the folder that holds it and the weights")
    config = read_json(path)
    check_names(config, str(path))
    return config


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Raise the ValueError that says why a model of this config cannot be converted."""
    if config.get("model_type") != MoebaConfig.model_type:
        family_of_config(config)


def _download(repo_id: str, revision: str | None, any_type: bool) -> Path:
    def fetch(names: list[str], at: str | None, unwanted: str = "*/*") -> Path:
        return Path(snapshot_download(repo_id, revision=at, allow_patterns=names, ignore_patterns=[unwanted]))

    try:
        config = Path(hf_hub_download(repo_id, "config.json", revision=revision))
        # A snapshot's folder is named by its commit: everything else comes from the same one.
        revision = config.parent.name
        if not any_type:
            _refuse_unsupported(read_json(config))
    except RemoteEntryNotFoundError:
        pass  # `Checkpoint` says what such a folder is instead
    folder = fetch(_SIDE_PATTERNS, revision)
    inside = [pattern for pattern in HUB_PATTERNS if "/" in pattern]
    for single, index in ((SAFE_FILE, SAFE_INDEX), (PICKLE_FILE, PICKLE_INDEX)):
        sharded = (folder / index).is_file()
        names = sorted(set(read_weight_map(folder / index).values())) if sharded else [single]
        fetch([*names, *inside], folder.name, "*/*/*")
        if all((folder / name).is_file() for name in names):
            break
    return folder
