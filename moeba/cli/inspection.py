"""What a model folder is, from its config and the headers of its weight files: no tensor is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..configuration import MoebaConfig
from ..configuration.model_facts import layer_view
from ..conversion.checkpoint import Checkpoint, read_json
from ..conversion.convert import moeba_config
from ..conversion.families import family_of_config
from ..conversion.provenance import read_history
from ..hub_card.reading.facts import of_these_weights
from ..hub_card.reading.records import read_certificate
from ..hub_card.text.engines import advice
from ..hub_card.text.words import describe
from ..tokenization import tokenizer_files

# Bytes of weights that are hashed without being asked for: a few seconds.
HASHED_AT_ONCE = 2_000_000_000


def inspect_folder(folder: Path, hash_all: bool = False) -> dict[str, Any]:
    """Everything that `moeba inspect` shows.

    Args:
        hash_all: hash the weight files whatever their size, to tell whether the certificate is of them.

    `parts`, `layers` and `parameters` are None where the model type is not supported; `unsupported` says why. `serving`
    is what engines may do with a Moeba folder, None of any other.

    Raises:
        ValueError, FileNotFoundError: the folder is no complete checkpoint.
    """
    checkpoint = Checkpoint(folder)
    facts: dict[str, Any] = {
        "folder": str(folder),
        "model_type": checkpoint.config.get("model_type"),
        "architectures": checkpoint.config.get("architectures"),
        "parts": None,
        "layers": None,
        "parameters": None,
        "serving": None,
        "unsupported": None,
    }
    try:
        config = _config(checkpoint)
        facts["parts"], facts["layers"] = describe(config), _layers(config)
        facts["serving"] = serving(checkpoint, config)
        facts["parameters"] = {
            "total": config.num_params(),
            "active": config.num_params(active_only=True),
        }
    except ValueError as error:
        facts["unsupported"] = " ".join(str(error).split())
    facts["weights"] = _weights(checkpoint)
    facts["tokenizer"] = _tokenizer(folder)
    facts["provenance"] = [_operation(step) for step in read_history(folder)]
    facts["certificate"] = _certificate(folder, checkpoint, hash_all)
    return facts


def serving(checkpoint: Checkpoint, config: MoebaConfig | None = None) -> str | None:
    """Whether engines may serve a Moeba folder as it is; None of a folder that is no Moeba or no language model."""
    architectures = checkpoint.config.get("architectures") or []
    if checkpoint.config.get("model_type") != MoebaConfig.model_type or architectures != ["MoebaForCausalLM"]:
        return None
    return advice(config or moeba_config(checkpoint, keeps_unknown=True))


def _config(checkpoint: Checkpoint) -> MoebaConfig:
    if checkpoint.config.get("model_type") == MoebaConfig.model_type:
        return moeba_config(checkpoint)
    family = family_of_config(checkpoint.config)
    return family.to_moeba(family.read_config(checkpoint.config))


def _layers(config: MoebaConfig) -> list[dict[str, Any]]:
    """Runs of equal neighbouring layers: the first and last index of each, and what they are."""
    runs: list[dict[str, Any]] = []
    for index in range(config.num_hidden_layers):
        kind = _layer(config, index)
        if runs and runs[-1]["kind"] == kind:
            runs[-1]["last"] = index
        else:
            runs.append({"first": index, "last": index, "kind": kind})
    return runs


def _layer(config: MoebaConfig, index: int) -> str:
    assert config.layer_types is not None and config.mlp_layer_types is not None, "set when a config is built"
    layer = layer_view(config, index)
    attention = config.layer_types[index].replace("_", " ")
    if config.layer_types[index] == "sliding_attention":
        attention += f" of {layer.sliding_window} tokens"
    if config.mlp_layer_types[index] == "dense":
        return f"{attention}, dense feed-forward of width {layer.intermediate_size}"
    shared = " and a shared one" if layer.shared_expert_intermediate_size else ""
    return (
        f"{attention}, {layer.num_experts} experts of width {layer.moe_intermediate_size}{shared}, "
        f"{layer.num_experts_per_tok} a token"
    )


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    dtypes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        name = str(info.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + info.nbytes // info.dtype.itemsize
    return {
        "tensors": len(checkpoint.tensors),
        "values": sum(dtypes.values()),
        "dtypes": dtypes,
        "files": {path.name: path.stat().st_size for path in checkpoint.weight_files},
    }


def _tokenizer(folder: Path) -> dict[str, Any] | None:
    files = tokenizer_files(folder)
    if not files:
        return None
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    template = settings.get("chat_template") or any(file.name.startswith("chat_template") for file in files)
    return {
        "class": settings.get("tokenizer_class"),
        "files": [file.name for file in files],
        "chat_template": bool(template),
    }


def _operation(step: dict[str, Any]) -> dict[str, Any]:
    source = step.get("source") or {}
    return {
        "operation": step.get("operation"),
        "source": source.get("repo_id") or source.get("path"),
        "source_model_type": source.get("model_type"),
        "moeba_version": step.get("moeba_version"),
    }


def _certificate(folder: Path, checkpoint: Checkpoint, hash_all: bool) -> dict[str, Any] | None:
    """What the folder's certificate is worth now, by the same reading as the card's, and what was looked at for it.

    `verdict` is `unverified` where nothing else is wrong but the weights were too large to be hashed.
    """
    certificate = read_certificate(folder)
    if certificate is None:
        return None
    size = sum(path.stat().st_size for path in checkpoint.weight_files)
    reads = bool(certificate.target_files) and (hash_all or size <= HASHED_AT_ONCE)
    certificate = replace(
        certificate, is_of_these_weights=of_these_weights(certificate, checkpoint.sha256() if reads else {})
    )
    outcome: str = certificate.outcome
    if outcome == "verified" and certificate.is_of_these_weights is None:
        outcome = "unverified"
    checked = ["config, generation settings and tokenizer"] if certificate.is_bound else []
    checked += ["weights by SHA-256"] if reads else []
    return {
        "verdict": outcome,
        "recorded": certificate.verdict,
        "operation": certificate.operation,
        "changes": list(certificate.changes),
        "problem": certificate.problem or None,
        "checked": checked,
        "weights_not_read": size if certificate.target_files and not reads else 0,
    }
