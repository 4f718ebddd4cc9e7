"""Convert a native checkpoint to Moeba, and export Moeba to a native one: plan, write, prove, publish."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..configuration import MoebaConfig
from ..modeling import MoebaPreTrainedModel
from ..modeling.code_files import AUTO_MAP, write_code
from ..tokenization.adopt import copy_tokenizer, use_stock_names
from .certificate import Certificate, CertificateError, certify_folders
from .checkpoint import Checkpoint, resolve
from .families import FAMILIES, family_of
from .plan import Plan, PlannedTensors, check_fit, moeba_shapes, plan_export, plan_import
from .provenance import CERTIFICATE_FILE, OWN_FILES, describe_source, read_history, write_provenance
from .writing import Progress, WriteReport, check_destination, write_checkpoint

# Which native model `--to auto` prefers when several can hold a model: the one that most engines serve.
EXPORT_ORDER = (
    "llama", "qwen2", "qwen3", "gpt2", "mixtral", "qwen3_moe", "mistral", "phi3", "gemma", "gemma2", "gemma3_text",
    "olmo2", "granite", "qwen2_moe", "olmoe", "granitemoe", "gpt_oss", "deepseek_v3", "glm4_moe",
)  # fmt: skip
NEAREST = 5  # families whose obstacles are told in full


@dataclass(frozen=True)
class Result:
    """What an operation did. `report` and `certificate` are None after a dry run."""

    folder: Path
    plan: Plan
    report: WriteReport | None = None
    certificate: Certificate | None = None


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    revision: str | None = None,
    certificate: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> Result:
    """Convert a native checkpoint (a folder or a Hub id) to a Moeba folder with the same function.

    The folder appears at the very end, complete and certified; run again after an interruption, it continues.

    Raises:
        ValueError: a field, tensor or file that has no exact place, with every offender named.
        CertificateError: the proof failed; nothing is published.
    """
    checkpoint = Checkpoint(resolve(source, revision))
    plan, config = plan_import(checkpoint)
    job = Job(plan, checkpoint, str(source), revision, Path(destination), {"bare_names": plan.bare_names})
    return job.run(
        certificate, overwrite, dry_run, max_shard_size, progress, lambda folder: save_moeba(folder, config)
    )


def export(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = "auto",
    revision: str | None = None,
    certificate: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> Result:
    """Export a Moeba folder to a native family with its classic tensor names; `to="auto"` picks one that can hold it.

    Raises:
        ValueError: the family cannot hold the model; each blocking field is named with its value.
        CertificateError: the proof failed; nothing is published.
    """
    checkpoint = Checkpoint(resolve(source, revision))
    config = moeba_config(checkpoint)
    # A damaged source is no family's fault: said before one is looked for.
    check_fit(checkpoint, moeba_shapes(config))
    made_from = next(
        (step for step in reversed(read_history(checkpoint.folder)) if step["operation"] == "convert"), None
    )

    def planned(model_type: str) -> Plan:
        native_again = made_from is not None and made_from["source"]["model_type"] == model_type
        bare = native_again and bool(made_from["recipe"].get("bare_names"))
        return plan_export(checkpoint, config, family_of(model_type), bare_names=bare)

    kind = "moe" if config.sparse_layers else "dense"
    plan = choose(planned, kind) if to == "auto" else planned(to)
    recipe = {"to": to, "chosen": plan.target_config["model_type"]}
    job = Job(plan, checkpoint, str(source), revision, Path(destination), recipe)
    native = family_of(plan.target_config["model_type"]).to_native(config)

    def save_native(folder: Path) -> None:
        native.save_pretrained(folder)
        use_stock_names(folder)

    return job.run(certificate, overwrite, dry_run, max_shard_size, progress, save_native)


def choose(planned: Callable[[str], Plan], kind: str) -> Plan:
    """The first family in `EXPORT_ORDER` that can hold the model exactly.

    Raises:
        ValueError: none can; what blocks the families of its kind with the fewest obstacles is named.
    """
    reasons: list[tuple[bool, int, str]] = []
    for model_type in [*EXPORT_ORDER, *(name for name in FAMILIES if name not in EXPORT_ORDER)]:
        try:
            return planned(model_type)
        except ValueError as error:
            obstacles = str(error).count("(there: ")
            reasons.append((FAMILIES[model_type].kind != kind, obstacles or len(FAMILIES), str(error)))
    nearest = [reason for *_, reason in sorted(reasons, key=lambda item: item[:2])[:NEAREST]]
    more = len(reasons) - len(nearest)
    raise ValueError(
        f"no native family can hold this model exactly. {'. '.join(nearest)}. {more} others have more in the way: "
        "export --to NAME says what"
    )


def read_native(
    source: str | Path, revision: str | None = None
) -> tuple[MoebaConfig, dict[str, torch.Tensor]]:
    """Config and tensors of a native checkpoint as Moeba holds them, in memory."""
    plan, config = plan_import(Checkpoint(resolve(source, revision)))
    plan.check_equal()
    planned = PlannedTensors(plan)
    return config, {name: planned.read(name) for name in planned.tensors}


def moeba_config(checkpoint: Checkpoint) -> MoebaConfig:
    """The config of a Moeba folder.

    Raises:
        ValueError: the folder holds a model of another type, or its config is invalid.
    """
    model_type = checkpoint.config.get("model_type")
    if model_type != MoebaConfig.model_type:
        raise ValueError(
            f"{checkpoint.folder} holds a {model_type!r} model, not a Moeba one: convert it first (moeba convert)."
        )
    try:
        MoebaConfig.refuse_unknown(checkpoint.config)
        return MoebaConfig.from_dict(dict(checkpoint.config))
    except Exception as error:
        raise ValueError(f"{checkpoint.folder}/config.json: {' '.join(str(error).split())}") from error


def save_moeba(folder: Path, config: MoebaConfig) -> None:
    """Write config.json and the code that loads it without moeba."""
    config.auto_map = dict(AUTO_MAP)
    config.architectures = ["MoebaForCausalLM"]
    config.save_pretrained(folder)
    write_code(folder)


@dataclass
class Job:
    """One operation on its way from plan to published folder."""

    plan: Plan
    checkpoint: Checkpoint
    given: str
    revision: str | None
    destination: Path
    recipe: dict[str, Any]

    def run(
        self,
        certificate: bool,
        overwrite: bool,
        dry_run: bool,
        max_shard_size: int | str,
        progress: Progress | None,
        save_config: Callable[[Path], None],
        prove: Callable[[Path, Path], Certificate] | None = None,
    ) -> Result:
        """Write, prove and publish; nothing appears at the destination unless all of it succeeds.

        Args:
            save_config: writes config.json (and code) into the folder.
            prove: `(source, folder) -> Certificate`, in place of the usual proof.
        """
        if dry_run:
            return Result(self.destination, self.plan)
        check_destination(self.checkpoint.folder, self.destination, overwrite)
        self.plan.check_equal()
        proof: list[Certificate] = []

        def finish(folder: Path) -> None:
            for path in self.checkpoint.side_files:
                if path.name not in OWN_FILES:
                    shutil.copyfile(path, folder / path.name)
            copy_tokenizer(self.checkpoint.folder, folder)
            save_config(folder)
            source = describe_source(self.checkpoint, self.given, self.revision)
            history = read_history(self.checkpoint.folder)
            write_provenance(folder, self.plan.operation, source, self.recipe, self.plan.notes, history)
            if certificate:
                proof.append((prove or certify_folders)(self.checkpoint.folder, folder))
                proof[0].target["path"] = self.destination.name
                if proof[0].verdict != "verified":
                    raise CertificateError(proof[0])
                proof[0].save(folder / CERTIFICATE_FILE)
            if MoebaPreTrainedModel.card_writer is not None:
                MoebaPreTrainedModel.card_writer(folder)

        report = write_checkpoint(
            self.plan.recipes,
            self.plan.source,
            self.destination,
            digest=self.plan.digest(
                self.checkpoint.fingerprint(), {**self.recipe, "certificate": certificate}
            ),
            finish=finish,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            progress=progress,
        )
        return Result(self.destination, self.plan, report, proof[0] if proof else None)
