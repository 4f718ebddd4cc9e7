"""What a certificate holds of the files that decide a model's function beside its weights, and what changed since.

Config, generation settings and tokenizer settings are held field by field, so that a change can be named and a tool
may rewrite what says nothing; other tokenizer files, chat templates among them, by their SHA-256. So is a `generate` of
the folder's own, which transformers takes with `trust_remote_code`.

Code comes into a folder after the proof, which ran this package's. A folder's own must be that, or what this release
writes; an `auto_map` may name no other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from ..configuration import MoebaConfig
from ..configuration.overrides import with_new_names
from ..configuration.schema import FACTS
from ..modeling.code_files import AUTO_MAP, code_files, code_in
from ..tokenization.adopt import tokenizer_files
from .config_differences import METADATA_FIELDS
from .hashes import sha256_of
from .json_files import listing, read_json

_CONFIG = "config.json"
# Fields that decide nothing: who wrote the file, and with what.
_METADATA: dict[str, Set[str]] = {
    _CONFIG: METADATA_FIELDS
    | {"output_attentions", "use_cache", "_attn_implementation_autoset", "_commit_hash"},
    "generation_config.json": {"transformers_version", "_from_model_config"},
    "tokenizer_config.json": {
        "transformers_version",
        "name_or_path",
        "auto_map",
        "processor_class",
        "is_local",
    },
    "special_tokens_map.json": set(),
    "added_tokens.json": set(),
}
_OWN_GENERATE = "custom_generate/generate.py"
_STOCK = "transformers"
_OLD_NAMES = {"torch_dtype": "dtype"}
_SCALES = ("logit_scale", "logits_scaling")
_LONGEST = 80  # characters of a value that is kept as it is
_MOST_NAMED = 5  # changed fields of one file


def bind(folder: Path) -> dict[str, Any]:
    """File name -> its fields, or its SHA-256, for each file beside the weights that decides the function."""
    return {str(path.relative_to(folder)): _held_anyhow(path) for path in _deciding(folder)}


def changes_since(folder: Path, bound: Mapping[str, Any]) -> tuple[str, ...]:
    """One line for each file that is not as `bind` found it: `config.json: norm_eps 1e-06 → 0.5`."""
    lines = []
    present = {str(path.relative_to(folder)): path for path in _deciding(folder)}
    for name in sorted({*bound, *present}):
        if name not in present:
            lines.append(f"{name}: it is gone")
        elif name not in bound:
            lines.append(f"{name}: it was added")
        elif changed := _changed(present[name], name, bound[name]):
            lines.append(f"{name}: {changed}")
    return tuple(lines)


def proven_code(is_moeba: bool) -> str:
    """What computes a model when it is proven: a hash of this package's code, as it travels, or the stock library."""
    return _joint_sha256(code_files()) if is_moeba else _STOCK


def code_changes(folder: Path, proven: str) -> tuple[str, ...]:
    """One line if a folder names code that is neither what was `proven` (`proven_code`) nor this release's."""
    try:
        named = read_json(folder / _CONFIG).get("auto_map")
    except (ValueError, OSError):  # `changes_since` says so
        return ()
    if not named:
        return ()
    if proven == _STOCK or named != AUTO_MAP:
        return (f"{_CONFIG}: auto_map names other code",)
    ours, found = code_files(), code_in(folder)
    if found == ours or _joint_sha256(found) == proven:
        return ()
    changed = sorted(name for name in {*ours, *found} if ours.get(name) != found.get(name))
    return (
        f"{listing(changed)}: not the code that was proven, nor what `moeba bundle` of this release writes",
    )


def _joint_sha256(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _deciding(folder: Path) -> list[Path]:
    named = [folder / name for name in (_CONFIG, "generation_config.json", _OWN_GENERATE)]
    return sorted({*(path for path in named if path.is_file()), *tokenizer_files(folder)})


def _held_anyhow(path: Path) -> Any:
    """A settings file that holds no JSON object is kept as bytes: whoever reads it judges it."""
    try:
        return _held(path)
    except ValueError:
        return sha256_of(path)


def _held(path: Path) -> Any:
    if path.name not in _METADATA:
        return sha256_of(path)
    values = {_OLD_NAMES.get(name, name): value for name, value in _flat(read_json(path)).items()}
    kept = _METADATA[path.name]
    return {name: _short(value) for name, value in values.items() if name.split(".")[0] not in kept}


def _changed(path: Path, name: str, before: Any) -> str:
    """What is otherwise in a file, in words; empty if nothing is."""
    try:
        now = _held(path) if isinstance(before, dict) else _held_anyhow(path)
    except ValueError as error:
        return f"it cannot be read ({' '.join(str(error).split())[:100]})"
    if now == before:
        return ""
    if not isinstance(now, dict) or not isinstance(before, dict):
        return "it was changed"
    if name == _CONFIG:
        before, now = _with_new_names(before), _with_new_names(now)
    whole = [_defaults(side) | side if name == _CONFIG else side for side in (before, now)]
    fields = []
    for field in sorted({*now, *before}):
        old, new = (side.get(field) for side in whole)
        if old != new and {old, new} != {None, "null"}:
            fields.append(f"{field} {_shown(old)} → {_shown(new)}")
    more = len(fields) - _MOST_NAMED
    return ", ".join(fields[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _with_new_names(values: dict[str, str]) -> dict[str, str]:
    """What a config of ours says under an old name, under today's."""
    if values.get("model_type") != _short(MoebaConfig.model_type):
        return values
    try:
        names: dict[str, Any] = {name: json.loads(values[name]) for name in _SCALES if name in values}
    except (TypeError, ValueError):  # a record that says no values
        return values
    return {name: value for name, value in values.items() if name not in names} | {
        name: _short(value) for name, value in with_new_names(names, of_file=True).items()
    }


def _defaults(values: Mapping[str, str]) -> dict[str, str]:
    """What a field means that a config.json leaves out: another release may write it, or leave out more."""
    try:
        model_type = json.loads(values["model_type"])
        config_class = CONFIG_MAPPING[model_type]
        said: dict[str, Any] = {}
        if model_type == MoebaConfig.model_type:  # there other fields may decide it
            known = {name: value for name, value in values.items() if name in FACTS}
            said = {name: json.loads(value) for name, value in known.items() if value[:7] != "sha256:"}
        config = config_class.from_dict(said)
        return {name: _short(value) for name, value in _flat(config.to_dict()).items()}
    except Exception:  # a stock class may refuse its own defaults in any way
        return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of fields by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _short(value: Any) -> str:
    """A value as JSON, or the hash of that where it is long."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _shown(value: str | None) -> str:
    """A kept value for a person."""
    if value is None:
        return "not given"
    return "another value" if value.startswith("sha256:") else value
