"""Plans: every target tensor, from which source tensors and how, decided from configs and headers alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..configuration import MoebaConfig
from ..configuration.model_facts import layer_view
from ..library.window import installed, is_newer_than_installed
from ..modeling import MoebaForCausalLM
from .checkpoint import Checkpoint, TensorSource
from .config_differences import differences
from .families import family_of_config
from .family import Family
from .foreign_names import describe_foreign_names
from .json_files import listing
from .pieces import pieces, read_pieces, same_bytes, whole
from .rows import Row
from .shards import Recipe
from .streams import stream_to_ours, stream_to_theirs
from .unread import shown
from .weight_files import TensorInfo

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass
class Plan:
    """
    Attributes:
        operation: `convert`, `export` or a surgery's name.
        source: where the recipes' sources are read.
        recipes: every target tensor exactly once.
        target_config: the whole config.json to write.
        dropped: source tensor -> why it carries nothing.
        filled: source tensors that are not there and stand for zeros.
        equal: pairs of source tensors that must be equal, byte for byte (a tied head that was stored twice).
        bare_names: the source leaves the base model's prefix off its names.
        notes: what a reader should know.
    """

    operation: str
    source: TensorSource
    recipes: list[Recipe]
    target_config: dict[str, Any]
    dropped: dict[str, str] = field(default_factory=dict)
    filled: list[str] = field(default_factory=list)
    equal: list[tuple[str, str]] = field(default_factory=list)
    bare_names: bool = False
    notes: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """One line a recipe, then what is dropped and noted."""
        lines = []
        for recipe in self.recipes:
            targets = ", ".join(f"{info.name} {list(info.shape)}" for info in recipe.targets[:3])
            more = f" … and {len(recipe.targets) - 3} more" if len(recipe.targets) > 3 else ""
            sources = ", ".join(recipe.sources[:3])
            rest = f" … and {len(recipe.sources) - 3} more" if len(recipe.sources) > 3 else ""
            lines.append(f"{targets}{more} <- {sources or 'new'}{rest}")
        lines += [f"dropped: {name} ({reason})" for name, reason in sorted(self.dropped.items())]
        return lines + [f"note: {note}" for note in self.notes]

    def summary(self) -> dict[str, Any]:
        """Counts and sizes."""
        targets = [info for recipe in self.recipes for info in recipe.targets]
        return {
            "operation": self.operation,
            "target_model_type": self.target_config["model_type"],
            "source_tensors": len(self.source.tensors),
            "target_tensors": len(targets),
            "target_bytes": sum(info.nbytes for info in targets),
            "dropped_tensors": len(self.dropped),
            "notes": self.notes,
        }

    def digest(self, fingerprint: str, recipe: Mapping[str, Any] | None = None) -> str:
        """Stands for the source, the plan and the operation's arguments: an unfinished run continues only under it."""
        parts = [fingerprint, json.dumps(self.target_config, sort_keys=True, default=str), *self.describe()]
        parts.append(json.dumps(dict(recipe or {}), sort_keys=True, default=str))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def check_equal(self) -> None:
        """Read the pairs of tensors that must be equal.

        Raises:
            ValueError: a head declared as tied differs from the embedding.
        """
        for first, second in self.equal:
            if not same_bytes(read_pieces(self.source, first), read_pieces(self.source, second)):
                raise ValueError(
                    f"config.json says tie_word_embeddings=true, but {first} differs from {second}: set it to false, "
                    "or remove the stale tensor."
                )


class PlannedTensors:
    """The targets of a plan as a source: each is computed when it is read."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tensors = {info.name: info for recipe in plan.recipes for info in recipe.targets}
        self._recipes = {info.name: recipe for recipe in plan.recipes for info in recipe.targets}
        self._last: tuple[Recipe | None, dict[str, torch.Tensor]] = (None, {})

    def read(self, name: str) -> torch.Tensor:
        """One target, bit for bit as writing the plan would store it."""
        recipe = self._recipes[name]
        if (copied := recipe.copied_from(name)) is not None:
            return self.plan.source.read(copied).contiguous()
        if self._last[0] is not recipe:
            self._last = (None, {})  # freed before the next one is computed
            outputs = recipe.run(self.plan.source)
            self._last = (
                recipe,
                {info.name: whole(value, info) for info, value in zip(recipe.targets, outputs, strict=True)},
            )
        return self._last[1][name].contiguous()

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """What `read` gives; piece by piece where it is copied, or computed so."""
        recipe = self._recipes[name]
        if (copied := recipe.copied_from(name)) is not None:
            yield from read_pieces(self.plan.source, copied)
        elif len(recipe.targets) > 1:
            yield self.read(name)
        else:
            yield from pieces(recipe.run(self.plan.source)[0])

    def copied_from(self, name: str) -> str | None:
        """The source tensor whose bytes a target is; None if it is computed."""
        return self._recipes[name].copied_from(name)


def moeba_shapes(config: MoebaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a Moeba checkpoint of this config holds, in the model's order."""
    with torch.device("meta"):
        model = MoebaForCausalLM(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop(HEAD)
    return shapes


def config_json(config: Any) -> dict[str, Any]:
    """The content of config.json for a config object."""
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return content


def plan_import(checkpoint: Checkpoint, strict: bool = False) -> tuple[Plan, MoebaConfig]:
    """Plan the way from a native checkpoint to Moeba.

    Args:
        strict: refuse a config.json with keys that the stock model does not read.

    Raises:
        ValueError: one sentence with every unsupported field, or every missing, unexpected or misshapen tensor.
    """
    family = family_of_config(checkpoint.config)
    _refuse_quantized(checkpoint.config)
    config = family.take(checkpoint.config, strict)
    names = _Names(checkpoint, family)
    shapes = moeba_shapes(config)
    recipes: list[Recipe] = []
    problems: list[str] = []
    filled: list[str] = []
    used: set[str] = set()
    wanted: list[str] = []
    for row, layer in active_rows(family, config, shapes):
        sources = row.their_names(layer, config)
        wanted += sources
        actual = [names.actual(source) for source in sources]
        if row.zero_if_absent and actual == [None]:
            filled += sources
            recipes.append(_zeros(row.our_names(layer)[0], shapes, row.describe()))
            continue
        if None in actual:
            problems += [
                f"missing {source}" for source, found in zip(sources, actual, strict=True) if found is None
            ]
            continue
        found = [name for name in actual if name is not None]
        used.update(found)
        targets = row.our_names(layer)
        infos = [checkpoint.tensors[name] for name in found]
        expected = [shapes[name] for name in targets]
        view = layer_view(config, layer)
        recipe = _recipe(targets, infos, partial(row.to_ours, config=view), row.describe(), expected)
        if isinstance(recipe, str):
            problems.append(recipe)
        else:
            recipes.append(stream_to_ours(row, view, recipe))

    dropped: dict[str, str] = {}
    equal = []
    for name in checkpoint.tensors:
        rule = family.drops(name, config)
        if name in used:
            continue
        if rule is not None:
            dropped[name] = rule.reason
        elif config.tie_word_embeddings and name == names.their_head:
            embedding = names.actual(names.their_embedding) or EMBEDDING
            equal.append((name, embedding))
            dropped[name] = "the tied head, stored twice; its bytes are compared with the embedding's"
        else:
            problems.append(f"unexpected {name}")
    if problems:
        foreign = describe_foreign_names(checkpoint.tensors, wanted, family.base_prefix)
        raise ValueError(
            f"{checkpoint.folder} is not a complete {family.model_type} checkpoint: {foreign or listing(problems)}"
        )
    plan = Plan(
        "convert",
        checkpoint,
        _ordered(recipes, shapes),
        config_json(config),
        dropped,
        filled,
        equal,
        names.bare,
    )
    if filled:
        plan.notes.append(f"not in the source, and zeros in the stock model: {listing(filled)}")
    plan.notes += _unscaled(checkpoint, used)
    if unread := family.not_read(checkpoint.config):
        plan.notes.append(_unread_note(family, unread, checkpoint.config.get("transformers_version")))
    return plan, config


def _unread_note(family: Family, unread: Mapping[str, Any], version: object) -> str:
    """What the stock model leaves unread; where a later transformers wrote it, that may read it."""
    if is_newer_than_installed(version):
        return (
            f"config.json was written by transformers {version}; the stock model of the installed "
            f"{installed('transformers')} does not read {shown(unread)}"
        )
    return f"not read by transformers' {family.architecture}: {shown(unread)}"


def _unscaled(checkpoint: Checkpoint, used: Iterable[str]) -> list[str]:
    """A warning where weights are stored as quantised ones are, and nothing says how to read them."""
    dtypes = [checkpoint.tensors[name].dtype for name in sorted(used)]
    small = [
        dtype for dtype in dtypes if not (dtype.is_floating_point or dtype.is_complex) or dtype.itemsize < 2
    ]
    if not small:
        return []
    kinds = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in small}))
    return [
        f"{len(small)} weights are stored as {kinds}, and config.json has no quantization_config: they are read as "
        "plain numbers, as the stock model reads them. If they were quantised, their scales are missing"
    ]


def check_fit(source: TensorSource, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A Moeba checkpoint holds exactly the tensors its config says.

    Args:
        shapes: `moeba_shapes` of the checkpoint's config.

    Raises:
        ValueError: every missing, unexpected or misshapen tensor, by name.
    """
    problems = [f"missing {name}" for name in shapes if name not in source.tensors]
    problems += [f"unexpected {name}" for name in source.tensors if name not in shapes]
    problems += [
        f"{name} has shape {list(source.tensors[name].shape)}, expected {list(shape)}"
        for name, shape in shapes.items()
        if name in source.tensors and source.tensors[name].shape != shape
    ]
    if problems:
        foreign = describe_foreign_names(source.tensors, list(shapes))
        raise ValueError(f"the checkpoint does not fit its config: {foreign or listing(problems)}")


def plan_export(source: TensorSource, config: MoebaConfig, family: Family, bare_names: bool = False) -> Plan:
    """Plan the way from Moeba to a native checkpoint with its classic names.

    Raises:
        ValueError: the fields, with their values, that the family cannot hold; or tensors that do not fit the config.
    """
    native = family.to_native(config)
    shapes = moeba_shapes(config)
    check_fit(source, shapes)
    recipes: list[Recipe] = []
    covered: set[str] = set()
    for row, layer in active_rows(family, config, shapes):
        targets = row.their_names(layer, config)
        if bare_names:
            targets = tuple(name.removeprefix(family.base_prefix) for name in targets)
        infos = [source.tensors[name] for name in row.our_names(layer)]
        view = layer_view(config, layer)
        recipe = _recipe(targets, infos, partial(row.to_theirs, config=view), row.describe(), None)
        assert not isinstance(recipe, str), recipe
        recipes.append(stream_to_theirs(row, view, recipe))
        covered.update(recipe.sources)
    homeless = [name for name in shapes if name not in covered]
    if homeless:
        raise ValueError(f"'{family.model_type}' has no place for {listing(homeless)}")
    plan = Plan("export", source, recipes, config_json(native), bare_names=bare_names)
    kept = family.to_moeba(native)
    plan.notes += _wider_routers(source, config, kept)
    lost = [f"{item.name}={item.first!r} (there: {item.second!r})" for item in differences(config, kept)]
    if lost:
        plan.notes.append(
            f"'{family.model_type}' has no field for these training settings: {', '.join(lost)}"
        )
    return plan


def _wider_routers(source: TensorSource, config: MoebaConfig, kept: MoebaConfig) -> list[str]:
    """A note where one of stock and Moeba rounds the routers, and the other does not, in the model's own dtype."""
    wide = [
        name
        for name, info in source.tensors.items()
        if name.endswith(".mlp.gate.weight") and info.dtype == torch.float32
    ]
    dtype = str(config.dtype).removeprefix("torch.")
    if not wide or config.router_param_dtype == kept.router_param_dtype or dtype in ("None", "float32"):
        return []
    rounding, exact = ("Moeba", "stock") if kept.router_param_dtype == "float32" else ("stock", "Moeba")
    return [
        f"{len(wide)} routers are stored in float32 beside a model in {dtype}: loaded in it, {rounding} (here, "
        f"transformers {installed('transformers')}) rounds them and {exact} does not"
    ]


def active_rows(family: Family, config: MoebaConfig, shapes: Mapping[str, Any]) -> Iterable[tuple[Row, int]]:
    """Each row, at each layer, whose tensors this model has."""
    for row in family.rows:
        for layer in range(config.num_hidden_layers) if row.per_layer else (0,):
            present = [name in shapes for name in row.our_names(layer)]
            assert all(present) or not any(present), f"half of a row exists: {row.describe()}"
            if all(present) and row.when(config):
                yield row, layer


class _Names:
    """Finds a family's tensor names in a checkpoint that may leave off the base model's prefix."""

    def __init__(self, checkpoint: Checkpoint, family: Family) -> None:
        self.tensors = checkpoint.tensors
        self.prefix = family.base_prefix
        self.bare = not any(name.startswith(self.prefix) for name in self.tensors)
        by_ours = {row.ours[0]: row.theirs[0] for row in family.rows}
        self.their_head, self.their_embedding = by_ours[HEAD], by_ours[EMBEDDING]

    def actual(self, name: str) -> str | None:
        found = name.removeprefix(self.prefix) if self.bare else name
        return found if found in self.tensors else None


def _recipe(
    targets: Sequence[str],
    sources: Sequence[TensorInfo],
    compute: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]],
    description: str,
    expected: Sequence[tuple[int, ...]] | None,
) -> Recipe | str:
    """A recipe whose target shapes were inferred on meta tensors, or a sentence that says which shapes do not fit."""
    stored = ", ".join(f"{info.name} {list(info.shape)}" for info in sources[:3])
    wanted = "" if expected is None else f", expected {targets[0]} {list(expected[0])}"
    try:
        outputs = compute([torch.empty(info.shape, dtype=info.dtype, device="meta") for info in sources])
    except (RuntimeError, ValueError, IndexError):
        return f"wrong shapes: {stored} cannot be combined{wanted}"
    shapes = [tuple(output.shape) for output in outputs]
    if expected is not None and shapes != list(expected):
        return f"wrong shape: {stored} gives {[list(shape) for shape in shapes]}{wanted}"
    infos = tuple(
        TensorInfo(name, shape, output.dtype)
        for name, shape, output in zip(targets, shapes, outputs, strict=True)
    )
    return Recipe(infos, tuple(info.name for info in sources), compute, description)


def _zeros(name: str, shapes: Mapping[str, tuple[int, ...]], description: str) -> Recipe:
    """A float32 tensor of zeros."""
    info = TensorInfo(name, shapes[name], torch.float32)
    return Recipe((info,), (), lambda sources: [torch.zeros(info.shape)], description)


def _ordered(recipes: list[Recipe], shapes: Mapping[str, Any]) -> list[Recipe]:
    """Recipes in the model's own order, so that neighbouring tensors lie in the same shard."""
    rank = {name: position for position, name in enumerate(shapes)}
    return sorted(recipes, key=lambda recipe: rank[recipe.targets[0].name])


def _refuse_quantized(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ValueError(
            f"the checkpoint is quantised (quant_method={method!r}): convert the unquantised one."
        )
