"""The recipe of a merge: YAML in the words of mergekit-moe, with a few of our own."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ...conversion.paths import expanded
from .published_recipe import published, published_text

PROMPTED = ("hidden", "hidden_avg", "hidden_last", "cheap_embed")
UNPROMPTED = ("random", "uniform_random")
GATE_MODES = (*PROMPTED, *UNPROMPTED, "calibration")
DTYPES = ("float32", "float16", "bfloat16")
BASE, AVERAGE = "base", "average"
VOCABULARIES = ("strict", "trim", "pad", "union")
_LARGEST = 1e30  # of a factor
# mergekit's names of output architectures that are not the family's own.
_ARCHITECTURES = {
    "qwen": "qwen2_moe",
    "qwen moe": "qwen2_moe",
    "qwen3": "qwen3_moe",
    "qwen3 moe": "qwen3_moe",
}
_RECIPE_KEYS = (
    "base_model", "experts", "shared_experts", "gate_mode", "dtype", "experts_per_token", "architecture",
    "others", "layers", "seed", "vocab", "pad_to_multiple_of",
)  # fmt: skip
# Of mergekit's other methods: its own reader of recipes for mixtures passes over them.
_OF_OTHER_METHODS = (
    "chat_template", "merge_method", "models", "name", "out_dtype", "parameters", "slices", "tokenizer",
    "tokenizer_source",
)  # fmt: skip
_EXPERT_KEYS = (
    "source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale",
    "name", "adapter", "calibration",
)  # fmt: skip


@dataclass(frozen=True)
class ModelReference:
    """A folder or Hub id, at a revision, with a LoRA adapter or without."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @property
    def short(self) -> str:
        return Path((self.adapter or self.model).rstrip("/")).name


@dataclass(frozen=True)
class ExpertRecipe:
    """One entry of `experts` or `shared_experts`.

    Attributes:
        positive_prompts: texts that this expert should get; negative_prompts: texts that it should not.
        calibration: files of such text.
        noise_scale: standard deviation of noise that is added to its weights.
        residual_scale: factor on what it answers.
    """

    name: str
    source: ModelReference
    positive_prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    calibration: tuple[Path, ...] = ()
    noise_scale: float = 0.0
    residual_scale: float = 1.0


@dataclass(frozen=True)
class MergeRecipe:
    """
    Attributes:
        others: whose tensors outside of the experts are kept: `base`, `average` (of the experts' models), or an expert.
        layers: which ones get experts, in the words of `parse_layers`.
        vocab: what is done where the models differ in tokens or rows, one of `VOCABULARIES`; None: the default.
        multiple: rows of the embedding are filled up to a multiple of it.
        given: the recipe as its record shows it, without paths; text: its file's, if it came from one.
        unread: its keys that no recipe for a mixture has.
    """

    base_model: ModelReference
    experts: tuple[ExpertRecipe, ...]
    shared: ExpertRecipe | None
    gate_mode: str
    dtype: str | None
    experts_per_token: int
    architecture: str | None
    others: str
    layers: str
    seed: int
    vocab: str | None
    multiple: int | None
    given: Mapping[str, Any]
    text: str | None = None
    unread: tuple[str, ...] = ()


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, rather than the last one winning."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(f"{', '.join(twice)} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def read_recipe(recipe: str | Path | Mapping[str, Any]) -> MergeRecipe:
    """A recipe from a YAML file, or from the mapping that such a file holds.

    Paths are relative to the file, or else to the working directory; what is neither is a Hub id.

    Raises:
        ValueError: an unknown key, with the nearest one; a value that does not fit, with its place.
    """
    if isinstance(recipe, Mapping):
        return _parse(dict(recipe), Path(), None)
    path = expanded(recipe)
    try:
        text = path.read_text(encoding="utf-8")
        given = yaml.load(text, _StrictLoader)  # a SafeLoader: nothing in it is run
    except RecursionError as error:
        raise ValueError(f"recipe {path} is nested too deeply") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"recipe {path} must hold base_model, experts and so on, not {type(given).__name__}")
    return _parse(given, path.parent, text)


def _parse(given: dict[str, Any], folder: Path, text: str | None) -> MergeRecipe:
    unread = tuple(key for key in given if key in _OF_OTHER_METHODS)
    given = {key: value for key, value in given.items() if key not in unread}
    _check_keys(given, _RECIPE_KEYS, "the recipe")
    for key in ("base_model", "experts"):
        if not given.get(key):
            raise ValueError(f"the recipe needs {key}")
    base = _reference(given["base_model"], None, folder, "base_model")
    prompted = given.get("gate_mode") not in UNPROMPTED
    experts = _experts(given["experts"], base, folder, "experts", prompted)
    shared = _experts(given.get("shared_experts") or [], base, folder, "shared_experts", prompted)
    if len(shared) > 1:
        raise ValueError(f"shared_experts holds {len(shared)} entries: there is room for one.")
    names = [BASE, AVERAGE]
    experts, shared = _named(experts, names), _named(shared, names)
    top_k = _whole(given, "experts_per_token", 2)
    if not 1 <= top_k <= len(experts):
        raise ValueError(f"experts_per_token={top_k} must be between 1 and the {len(experts)} experts.")
    calibrated = any(expert.calibration for expert in experts)
    mode = _choice(given, "gate_mode", GATE_MODES, "calibration" if calibrated else "hidden")
    others = _choice(given, "others", (BASE, AVERAGE, *(expert.name for expert in experts)), BASE)
    recipe = MergeRecipe(
        base_model=base,
        experts=experts,
        shared=shared[0] if shared else None,
        gate_mode=mode,
        dtype=_choice(given, "dtype", DTYPES, None),
        experts_per_token=top_k,
        architecture=_architecture(given.get("architecture")),
        others=others,
        layers=_layers(given.get("layers")),
        seed=_whole(given, "seed", 0),
        vocab=_choice(given, "vocab", VOCABULARIES, None),
        multiple=_whole(given, "pad_to_multiple_of", 0) or None,
        given=published(given, folder),
        text=text and published_text(text, folder),
        unread=unread,
    )
    _check_prompts(recipe)
    return recipe


def _check_prompts(recipe: MergeRecipe) -> None:
    """A router that is made of texts needs one an expert, and not the same for all."""
    experts, mode = recipe.experts, recipe.gate_mode
    texts: set[Any]
    if mode in PROMPTED:
        bare = [expert.name for expert in experts if not expert.positive_prompts]
        if bare:
            raise ValueError(f"gate_mode={mode!r} needs positive_prompts: {', '.join(bare)} has none.")
        texts = {(expert.positive_prompts, expert.negative_prompts) for expert in experts}
    elif mode == "calibration":
        bare = [expert.name for expert in experts if not expert.calibration and not expert.positive_prompts]
        if bare:
            raise ValueError(
                f"gate_mode='calibration' needs calibration files or prompts: {', '.join(bare)} has none."
            )
        texts = {
            (expert.calibration or expert.positive_prompts, expert.negative_prompts) for expert in experts
        }
    else:
        return
    if len(texts) == 1 < len(experts):
        raise ValueError(
            "all experts have the same texts, so the router could not tell them apart: give each its own, or "
            "gate_mode: random and train it."
        )


def _experts(
    given: Any, base: ModelReference, folder: Path, key: str, prompted: bool
) -> tuple[ExpertRecipe, ...]:
    if not isinstance(given, list):
        raise ValueError(f"{key} must be a list of experts, not {type(given).__name__}")
    return tuple(
        _expert(entry, base, folder, f"{key}[{place}]", prompted) for place, entry in enumerate(given)
    )


def _expert(given: Any, base: ModelReference, folder: Path, place: str, prompted: bool) -> ExpertRecipe:
    if not isinstance(given, dict):
        raise ValueError(f"{place} must hold source_model and so on, not {type(given).__name__}")
    _check_keys(given, _EXPERT_KEYS, place)
    if given.get("source_model") is None and given.get("adapter") is None:
        raise ValueError(f"{place} needs source_model, or an adapter of the base model")
    source = _reference(given.get("source_model"), given.get("adapter"), folder, place, base)
    name = given.get("name") or ""
    if not isinstance(name, str) or "/" in name or name in (BASE, AVERAGE):
        raise ValueError(
            f"{place}: name={name!r} must be a word other than {BASE} and {AVERAGE}, without a slash."
        )
    return ExpertRecipe(
        name=name,
        source=source,
        positive_prompts=_texts(given, "positive_prompts", place, prompted),
        negative_prompts=_texts(given, "negative_prompts", place, prompted),
        calibration=_files(given.get("calibration"), folder, place),
        noise_scale=_number(given, "noise_scale", 0.0, place),
        residual_scale=_number(given, "residual_scale", 1.0, place),
    )


def _named(experts: Sequence[ExpertRecipe], taken: list[str]) -> tuple[ExpertRecipe, ...]:
    """Every expert with a name of its own: the one given, or its folder's; `taken` grows."""
    given = [expert.name for expert in experts if expert.name]
    if twice := sorted({name for name in given if given.count(name) > 1 or name in taken}):
        raise ValueError(f"two experts have the same name: {', '.join(twice)}")
    found = []
    for expert in experts:
        name, number = expert.name or expert.source.short, 1
        while not expert.name and name in [*taken, *given]:
            number += 1
            name = f"{expert.source.short}-{number}"
        taken.append(name)
        found.append(replace(expert, name=name))
    return tuple(found)


def _reference(
    model: Any, adapter: Any, folder: Path, place: str, base: ModelReference | None = None
) -> ModelReference:
    """mergekit writes `model@revision+adapter@revision`, or the same as a mapping."""
    if isinstance(model, Mapping):
        _check_keys(model, ("model", "lora", "override_architecture"), place)
        if model.get("override_architecture"):
            raise ValueError(f"{place}: override_architecture is not supported")
        if model.get("model") is None:
            raise ValueError(f"{place}: {_short(model)} names no model")
        model, adapter = model["model"], adapter or model.get("lora")
    parts = [_path_and_revision(item, place) for item in (model, adapter)]
    if isinstance(model, str) and "+" in model and not _is_here(model, folder):
        if adapter is not None:
            raise ValueError(
                f"{place}: source_model={model!r} names an adapter, and adapter={adapter!r} another one"
            )
        parts = [_path_and_revision(item, place) for item in model.split("+", 1)]
    (path, revision), (lora, lora_revision) = parts
    if path is None:
        if base is None:
            raise ValueError(f"{place} needs a model")
        if base.adapter:
            raise ValueError(f"{place}: the base model has an adapter itself: name source_model as well")
        path, revision = base.model, base.revision
    else:
        path = _located(path, folder)
    return ModelReference(path, revision, lora and _located(lora, folder), lora_revision)


def _path_and_revision(given: Any, place: str) -> tuple[str | None, str | None]:
    if given is None:
        return None, None
    if isinstance(given, Mapping):
        _check_keys(given, ("path", "revision"), place)
        path, revision = given.get("path"), given.get("revision")
        if not isinstance(path, str | Path) or not isinstance(revision, str | None):
            raise ValueError(f"{place}: path and revision must be texts, not {_short(given)}")
        return str(path), revision
    if not isinstance(given, str | Path):
        raise ValueError(f"{place}: a model must be a folder or a Hub id, not {_short(given)}")
    text = str(given)
    path, at, revision = text.rpartition("@")
    return (path, revision) if at and not expanded(text).exists() else (text, None)


def _is_here(path: str, folder: Path) -> bool:
    return any(place.exists() for place in (folder / expanded(path), expanded(path)))


def _located(path: str, folder: Path) -> str:
    beside = folder / expanded(path)
    return str(beside) if beside.exists() else path


def _files(given: Any, folder: Path, place: str) -> tuple[Path, ...]:
    files = [] if given is None else [given] if isinstance(given, str | Path) else given
    if not isinstance(files, list | tuple) or not all(isinstance(file, str | Path) for file in files):
        raise ValueError(f"{place}: calibration must be text files, not {_short(given)}")
    return tuple(expanded(_located(str(file), folder)) for file in files)


def _short(value: Any) -> str:
    """A value for a message: YAML can make much, and endless things, of little text."""
    return reprlib.repr(value)


def _check_keys(given: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}."
            raise ValueError(f"{place} has an unknown key {key!r}: {hint}")


def _texts(given: Mapping[str, Any], key: str, place: str, prompted: bool) -> tuple[str, ...]:
    """Texts for the router; where it reads none, what there is of them is for the gap, and need not be any."""
    value = [] if given.get(key) is None else given[key]
    texts = [value] if isinstance(value, str) else value
    if not prompted:
        found = texts if isinstance(texts, list) else []
        return tuple(text for text in found if isinstance(text, str) and text.strip())
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{place}: {key} must be a list of texts, not {_short(value)}")
    return tuple(texts)


def _number(given: Mapping[str, Any], key: str, default: float, place: str) -> float:
    value = default if given.get(key) is None else given[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        raise ValueError(f"{place}: {key}={_short(value)} must be a number, 0 or more.")
    return float(value)


def _whole(given: Mapping[str, Any], key: str, default: int) -> int:
    value = default if given.get(key) is None else given[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{key}={_short(value)} must be a whole number.")
    return value


def _choice(given: Mapping[str, Any], key: str, choices: Sequence[str], default: Any) -> Any:
    value = default if given.get(key) is None else given[key]
    if value is not None and value not in choices:
        raise ValueError(f"{key}={_short(value)}: choose one of {', '.join(choices)}.")
    return value


def _layers(given: Any) -> str:
    """In the words of the command line, or a list of numbers as YAML has it."""
    if isinstance(given, list) and all(type(layer) is int for layer in given):
        return ",".join(str(layer) for layer in given)
    if not isinstance(given, str | int | None):
        raise ValueError(f"layers={_short(given)} must be a word such as first:6, or a list of numbers.")
    return "all" if given is None else str(given)


def _architecture(given: Any) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise ValueError(f"architecture={_short(given)} must be the name of a family.")
    name = given.lower()
    if name in ("deepseek", "deepseek moe"):
        raise ValueError(
            f"architecture={given!r} needs code from the Hub to load: choose mixtral, qwen, qwen3 or one of `moeba "
            "families`."
        )
    return _ARCHITECTURES.get(name, name)
