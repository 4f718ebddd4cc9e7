"""Checks of two folders' files: configs, tensors, tokenizers, and the fields that no logits show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ...configuration import MoebaConfig
from ...configuration.expert_fields import ExpertFields, LayerKindFields
from ...configuration.fields import facts_of
from ...configuration.router_fields import RouterFields
from ..config_differences import TRAINING_FIELDS, differences
from ..config_rows import Inert
from ..family import Family
from ..json_files import listing
from ..pieces import TensorSource, pieces, read_pieces, same_bytes
from ..plan import PlannedTensors, moeba_shapes, plan_export
from ..unread import unread_keys
from .report import Certificate, Check
from .sides import Comparison, Side

TEXT = "Déjà vu: naïve café, 12 345 tokens…\n\tdef f(x):  return x**2  # 你好 <s> \u0065\u0301\n"
_FEED_FORWARD = ".mlp."  # in Moeba's names
# Fields that rightly differ between a dense model and the mixture of experts made from it.
_EXPERT_FIELDS = {
    *facts_of(LayerKindFields, ExpertFields, RouterFields), "intermediate_size", "mlp_bias", "per_layer_config"
} - {"moe_output_norm", "sparsemixer_eps"}  # fmt: skip
# What a field of a native config that acts in training alone has in its name. Heads of other tasks are not compared.
_WORDS, _OTHER_HEADS = (
    ("dropout", "pdrop", "_drop", "jitter", "aux_loss", "z_loss"),
    ("classifier", "summary"),
)
# Fields of both, by one name, that decide what is generated, returned or initialised.
_SHARED = (
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "output_router_logits", "initializer_range",
    "tie_word_embeddings", "vocab_size",
)  # fmt: skip


def configs(both: Comparison, certificate: Certificate) -> Check:
    """Every field that the two disagree on has a reason."""
    found = certificate.config_differences
    unexplained = [item["field"] for item in found if item["verdict"] == "different"]
    detail = f"unexplained: {', '.join(unexplained)}" if unexplained else ""
    return Check("config", "failed" if unexplained else "verified", {"differences": len(found)}, detail)


def config_differences(both: Comparison) -> list[dict[str, Any]]:
    """The fields, with their values and whether they may differ."""
    return [
        {
            "field": item.name,
            "source": item.first,
            "target": item.second,
            "verdict": _verdict(item.name, both.kind.rebuilt),
        }
        for item in differences(both.first.config, both.second.config)
    ]


def _verdict(name: str, rebuilt: bool) -> str:
    if name in TRAINING_FIELDS or name == "dtype":
        return "training only"
    return "derived" if rebuilt and name in _EXPERT_FIELDS else "different"


def tensors(both: Comparison, certificate: Certificate) -> Check:
    """Every tensor is there on both sides, and comes back bit for bit."""
    keys = certificate.keys
    wrong = [*keys["missing"], *keys["unexpected"], *keys["changed"]]
    figures = {"source": keys["source"], "target": keys["target"], "dropped": len(keys["dropped"])}
    detail = f"differ: {', '.join(wrong[:5])}" if wrong else f"round trip: {keys['round_trip']}"
    return Check("tensors", "failed" if wrong else "verified", figures, detail)


def tensor_keys(both: Comparison) -> dict[str, Any]:
    """Counts, what was dropped, and whether the tensors come back bit for bit."""
    first, second = both.sides
    keys: dict[str, Any] = {
        "source": len(first.checkpoint.tensors),
        "target": len(second.checkpoint.tensors),
        "dropped": {**first.dropped, **second.dropped},
    }
    shapes = moeba_shapes(second.config)
    keys["missing"] = sorted(set(shapes) - set(second.tensors.tensors))
    keys["unexpected"] = sorted(set(second.tensors.tensors) - set(shapes))
    if both.kind.rebuilt:
        keys["round_trip"] = "not applicable"
        keys["kept_bitwise"], keys["changed"] = _same_tensors(first, second)
        return keys
    _, changed = _same_tensors(first, second)
    lost = sorted(set(first.tensors.tensors) ^ set(second.tensors.tensors))
    returned = _returned(first, first.family) if first.family is not None else []
    keys["changed"] = [*changed, *lost, *returned]
    keys["round_trip"] = "bitwise" if not keys["changed"] else "different"
    return keys


def _same_tensors(first: Side, second: Side) -> tuple[int, list[str]]:
    """How many tensors are the same bytes under the same Moeba name, and the names of those that are not.

    Those of another shape are for `misfits`.
    """
    before, after = first.tensors.tensors, second.tensors.tensors
    shared = [name for name in after if name in before and before[name].shape == after[name].shape]
    changed = [name for name in shared if not _same_tensor(first.tensors, name, second.tensors)]
    return len(shared) - len(changed), changed


def misfits(both: Comparison) -> list[str]:
    """What keeps two models from being compared number by number."""
    layers = [side.config.num_hidden_layers for side in both.sides]
    if layers[0] != layers[1]:
        return [f"{layers[0]} layers against {layers[1]}"]
    a, b = (moeba_shapes(side.config) for side in both.sides)
    return [
        f"{name} {list(a[name])} against {list(b[name])}"
        for name in a
        if name in b and a[name] != b[name] and not (both.kind.rebuilt and _FEED_FORWARD in name)
    ]


def _returned(side: Side, family: Family) -> list[str]:
    """Native tensors that do not come back, byte for byte, from their Moeba form."""
    back = PlannedTensors(plan_export(side.tensors, side.config, family, bare_names=side.bare_names))
    expected = set(side.checkpoint.tensors) - set(side.dropped)
    wrong = sorted(expected ^ (set(back.tensors) - set(side.filled)))
    for recipe in back.plan.recipes:
        for info, output in zip(recipe.targets, recipe.run(side.tensors), strict=True):
            stored = side.checkpoint.tensors.get(info.name)
            if (
                recipe.compute is list
                and side.tensors.copied_from(recipe.copied_from(info.name)) == info.name
            ):
                continue  # there and back as bytes, to the same name
            if info.name in expected and stored is not None:
                same = info == stored and same_bytes(pieces(output), read_pieces(side.checkpoint, info.name))
                wrong += [] if same else [info.name]
    return wrong


def _same_tensor(first: TensorSource, name: str, second: TensorSource) -> bool:
    """Whether two sources have the same tensor, byte for byte."""
    return first.tensors[name] == second.tensors[name] and same_bytes(
        read_pieces(first, name), read_pieces(second, name)
    )


def tokenizers(both: Comparison, certificate: Certificate) -> Check:
    """The same ids for one awkward text. A difference is reported and does not decide the verdict."""
    folders: list[Path] = [side.checkpoint.folder for side in both.sides]
    names = ("tokenizer_config.json", "tokenizer.json")
    if not any((folder / name).exists() for folder in folders for name in names):
        return Check("tokenizer", "not applicable", detail="the folders hold none")
    try:
        a, b = (
            AutoTokenizer.from_pretrained(folder, local_files_only=True)(TEXT)["input_ids"]
            for folder in folders
        )
    except Exception as error:  # tokenizer backends raise anything
        return Check("tokenizer", "unverified", detail=" ".join(str(error).split())[:200])
    if a == b:
        return Check("tokenizer", "verified", {"tokens": len(a)})
    why = "AutoTokenizer reads other ids from the two folders: name tokenizer_class"
    return Check("tokenizer", "unverified", detail=why)


def training_fields(both: Comparison, certificate: Certificate) -> Check:
    """A native side's dropouts, jitter and loss coefficients come back from Moeba's terms as they stand in its file."""
    if not both.natives:
        return Check("training fields", "not applicable", detail="both are Moeba's own")
    lost = [
        line
        for side, family in both.natives
        for line in lost_fields(family, side.checkpoint.config, side.config)
    ]
    return Check("training fields", "failed" if lost else "verified", detail=listing(lost))


def lost_fields(family: Family, raw: dict[str, Any], config: MoebaConfig) -> list[str]:
    """Fields of a native config.json that no logits show, and that our config says otherwise: `name a → b`.

    Those that act in training alone must come back from ours; those that both sides have under one name must be equal.
    """
    native = family.read_config(raw).to_dict()
    # What was only kept for an export is not what the model trains by.
    said = MoebaConfig.from_dict({**config.to_dict(), "native_fields": None})
    back = family.to_native(said).to_dict()
    unread = unread_keys(raw, family.config_rows)
    inert = {row.their_name for row in family.config_rows if isinstance(row, Inert)}
    ours = {name: getattr(config, name) for name in _SHARED if name in native}
    theirs = {
        name: back.get(name)
        for name in native
        if any(word in name for word in _WORDS)
        and not name.startswith(_OTHER_HEADS)
        and name not in inert
        and name not in unread
    }
    return [
        f"{name} {native[name]!r} → {value!r}"
        for name, value in sorted((theirs | ours).items())
        if (native[name] or None) != (value or None)
    ]
