"""Convert a native checkpoint to Moeba, and export Moeba to a native one: plan, write, prove, publish."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from ..configuration import MoebaConfig
from ..modeling.code_files import AUTO_MAP, write_code
from ..tokenization.adopt import check_stock_reading, use_stock_names
from .checkpoint import Checkpoint, resolve
from .families import family_of
from .family import Family
from .job import Job, Origin, Result, Run, RunOptions
from .plan import Plan, PlannedTensors, check_fit, moeba_shapes, plan_export, plan_import
from .provenance import read_history
from .targets import first_that_holds
from .training_notes import notes_on_balance


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    revision: str | None = None,
    strict: bool = False,
    **run: Unpack[RunOptions],
) -> Result:
    """Convert a native checkpoint (a folder or a Hub id) to a Moeba folder with the same function.

    The folder appears at the very end, complete and certified; run again after an interruption, it continues. Keys of
    config.json that the stock model does not read are kept, and reported in `plan.notes`.

    Args:
        strict: refuse such keys instead.
        run: see `conversion.job.Run`.

    Raises:
        ValueError: a field, tensor or file that has no exact place, with every offender named.
        CertificateError: the proof failed; nothing is published.
    """
    options = Run(**run)
    checkpoint = Checkpoint(resolve(source, revision))
    plan, config = plan_import(checkpoint, strict)
    plan.notes += notes_on_balance(config, family_of(checkpoint.config["model_type"]))
    origin = Origin(checkpoint, str(source), revision)
    recipe = {"bare_names": plan.bare_names}
    job = Job(plan, [origin], Path(destination), recipe, partial(save_moeba, config))
    return job.run(options)


def export(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = "auto",
    revision: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Export a Moeba folder to a native family with its classic tensor names; `to="auto"` picks one that can hold it.

    Args:
        run: see `conversion.job.Run`.

    Raises:
        ValueError: the family cannot hold the model; each blocking field is named with its value.
        CertificateError: the proof failed; nothing is published.
    """
    options = Run(**run)
    checkpoint = Checkpoint(resolve(source, revision))
    config = moeba_config(checkpoint)
    # A damaged source is no family's fault: said before one is looked for.
    check_fit(checkpoint, moeba_shapes(config))
    history = reversed(read_history(checkpoint.folder))
    made_from: dict[str, Any] = next((step for step in history if step["operation"] == "convert"), {})

    def planned(model_type: str) -> Plan:
        native_again = made_from.get("source", {}).get("model_type") == model_type
        bare = native_again and bool(made_from.get("recipe", {}).get("bare_names"))
        return plan_export(checkpoint, config, family_of(model_type), bare_names=bare)

    kind = "moe" if config.sparse_layers else "dense"
    plan = first_that_holds(planned, kind) if to == "auto" else planned(to)
    recipe = {"to": to, "chosen": plan.target_config["model_type"]}
    family = family_of(plan.target_config["model_type"])
    check_stock_reading(checkpoint.folder, plan.target_config["model_type"])
    origin = Origin(checkpoint, str(source), revision)
    job = Job(plan, [origin], Path(destination), recipe, partial(save_native, config, family))
    return job.run(options)


def read_native(
    source: str | Path, revision: str | None = None
) -> tuple[MoebaConfig, dict[str, torch.Tensor]]:
    """Config and tensors of a native checkpoint as Moeba holds them, in memory."""
    plan, config = plan_import(Checkpoint(resolve(source, revision)))
    plan.check_equal()
    planned = PlannedTensors(plan)
    return config, {name: planned.read(name) for name in planned.tensors}


def moeba_config(checkpoint: Checkpoint, keeps_unknown: bool = False) -> MoebaConfig:
    """The config of a Moeba folder.

    Args:
        keeps_unknown: take attributes that are no fields, as where a model is loaded: they change nothing.

    Raises:
        ValueError: the folder holds a model of another type, or its config is invalid.
    """
    model_type = checkpoint.config.get("model_type")
    if model_type != MoebaConfig.model_type:
        raise ValueError(
            f"{checkpoint.folder} holds a {model_type!r} model, not a Moeba one: convert it first (moeba convert)."
        )
    try:
        if not keeps_unknown:
            MoebaConfig.refuse_unknown(checkpoint.config)
        return MoebaConfig.from_dict(dict(checkpoint.config))
    except Exception as error:
        raise ValueError(f"{checkpoint.folder}/config.json: {' '.join(str(error).split())}") from error


def save_native(config: MoebaConfig, family: Family, folder: Path) -> None:
    """Write the native config.json, and a tokenizer config that stock transformers reads."""
    family.to_native(config).save_pretrained(folder)
    use_stock_names(folder)


def save_moeba(config: MoebaConfig, folder: Path) -> None:
    """Write config.json and the code that loads it without moeba."""
    config.auto_map = dict(AUTO_MAP)
    config.architectures = ["MoebaForCausalLM"]
    config.save_pretrained(folder)
    write_code(folder)
