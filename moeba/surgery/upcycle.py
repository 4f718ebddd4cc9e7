"""Sparse upcycling: every expert starts as a copy of the dense feed-forward (Komatsuzaki et al. 2022).

The chosen experts' weights are renormalised to sum to 1, so whatever the router picks, the layer computes what the
dense one did: the function is kept exactly, and the router is free to learn from there.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from ..configuration import MoebaConfig
from ..conversion.certificate import Certificate, Check, certify_folders
from ..conversion.certificate.twin import StateDict, load_exactly, randomise, shrink
from ..conversion.checkpoint import Checkpoint, TensorSource, resolve
from ..conversion.convert import EXPORT_ORDER, Job, Result, moeba_config, save_moeba
from ..conversion.families import family_of
from ..conversion.plan import Plan, PlannedTensors, config_json, moeba_shapes, plan_import
from ..conversion.shards import Recipe
from ..conversion.weight_files import TensorInfo
from ..conversion.writing import Progress
from ..modeling import MoebaForCausalLM
from .layers import parse_layers
from .router_init import CHOICES, calibrated_rows, degeneracy, random_rows, read_texts

LAYER = "model.layers.{layer}.mlp."


def upcycle(
    source: str | Path,
    destination: str | Path,
    *,
    experts: int,
    top_k: int,
    layers: str = "all",
    router_init: str = "normal",
    calibration: Sequence[str | Path] = (),
    seed: int = 0,
    revision: str | None = None,
    certificate: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> Result:
    """Turn a dense checkpoint (native or Moeba) into a Moeba mixture of experts with the same function.

    Args:
        experts: copies of each feed-forward. top_k: how many of them a token visits.
        layers: `all`, `every:2`, `last:6`, `first:6` or a list such as `0,2,5`.
        router_init: `normal` (small noise), `zeros`, or `calibration`: rows found from the feed-forward's true inputs
            while the dense model reads the `calibration` text files.
        seed: of the router's rows.

    Raises:
        ValueError: the source has experts already, or an argument does not fit it.
        CertificateError: the proof failed; nothing is published.
    """
    if router_init not in CHOICES:
        raise ValueError(f"router_init={router_init!r}: choose one of {', '.join(CHOICES)}.")
    if calibration and router_init != "calibration":
        raise ValueError(f"calibration files are given, but router_init={router_init!r} reads none.")
    folder = resolve(source, revision)
    checkpoint = Checkpoint(folder)
    dense, tensors = open_as_moeba(checkpoint)
    config = sparse_config(dense, experts, top_k, parse_layers(layers, dense.num_hidden_layers))
    if isinstance(tensors, PlannedTensors) and not dry_run:
        tensors.plan.check_equal()
    rows: dict[int, torch.Tensor] = {}
    if router_init == "calibration":
        texts = read_texts(calibration)
        if not dry_run:
            rows = calibrated_rows(
                _load_dense(folder), _tokenizer(folder), texts, config.sparse_layers, experts, seed
            )
    plan = plan_upcycle(tensors, dense, config, router_init, seed, rows)
    recipe = {
        "experts": experts,
        "top_k": top_k,
        "layers": layers,
        "sparse_layers": config.sparse_layers,
        "router_init": router_init,
        "seed": seed,
        "calibration": [Path(file).name for file in calibration],
        "router_rows": _hash(rows),
    }
    job = Job(plan, checkpoint, str(source), revision, Path(destination), recipe)

    def prove(first: Path, second: Path) -> Certificate:
        proof = certify_folders(first, second, twins=partial(_twins, dense, config), operation="upcycle")
        proof.checks.append(_copies(tensors, Checkpoint(second), config))
        return proof

    return job.run(
        certificate, overwrite, dry_run, max_shard_size, progress, lambda out: save_moeba(out, config), prove
    )  # fmt: skip


def open_as_moeba(checkpoint: Checkpoint) -> tuple[MoebaConfig, TensorSource]:
    """Config and tensors of a native or Moeba folder, in Moeba's terms; nothing is read yet."""
    if checkpoint.config.get("model_type") == MoebaConfig.model_type:
        return moeba_config(checkpoint), checkpoint
    plan, config = plan_import(checkpoint)
    return config, PlannedTensors(plan)


def sparse_config(dense: MoebaConfig, experts: int, top_k: int, layers: Sequence[int]) -> MoebaConfig:
    """The config of the upcycled model.

    Where routing weights are rounded is the dense model's to choose freely: the way of a native family that can hold
    the result is taken, so that it can be exported.
    """
    if dense.sparse_layers:
        raise ValueError(
            f"the source already has experts in layers {dense.sparse_layers}: upcycling starts from a dense model."
        )
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k={top_k} must be between 1 and experts={experts}.")
    if not layers:
        raise ValueError("no layer is chosen: the model would stay dense.")
    values = copy.deepcopy(dense.to_dict())
    values.update(
        num_experts=experts,
        num_experts_per_tok=top_k,
        moe_intermediate_size=dense.intermediate_size,
        mlp_layer_types=["sparse" if i in layers else "dense" for i in range(dense.num_hidden_layers)],
        norm_topk_prob=True,
        scoring_func="softmax",
        expert_bias=dense.mlp_bias,
        shared_expert_intermediate_size=0,
        shared_expert_gate=False,
    )
    candidates = [
        MoebaConfig.from_dict({**values, "router_weight_dtype": kind}) for kind in ("float32", "model")
    ]
    return next((config for config in candidates if _exportable(config)), candidates[0])


def plan_upcycle(
    source: TensorSource,
    dense: MoebaConfig,
    config: MoebaConfig,
    router_init: str,
    seed: int,
    rows: Mapping[int, torch.Tensor],
) -> Plan:
    """Every tensor of the sparse model: copied, repeated for each expert, or a new router."""
    recipes: list[Recipe] = []
    notes = []
    for name, shape in moeba_shapes(config).items():
        if name in source.tensors:
            info = source.tensors[name]
            recipes.append(Recipe((info,), (name,), list, f"{name} kept"))
            continue
        layer = int(name.split(".")[2])
        part = name.removeprefix(LAYER.format(layer=layer))
        if part == "gate.weight":
            initial = rows.get(layer)
            if initial is None:
                initial = random_rows(
                    router_init, (shape[0], shape[1]), config.initializer_range, seed, layer
                )
            else:
                notes.append(
                    f"layer {layer}: largest cosine between two calibrated router rows {degeneracy(initial):.3f}"
                )
            dtype = source.tensors[LAYER.format(layer=layer) + "down_proj.weight"].dtype
            value = initial.to(dtype)
            recipes.append(
                Recipe((TensorInfo(name, shape, dtype),), (), partial(_constant, value), f"{name} new")
            )
        else:
            recipes.append(_repeated(name, shape, part, layer, source, config.num_experts))
    return Plan("upcycle", source, recipes, config_json(config), notes=notes)


def _repeated(
    name: str, shape: tuple[int, ...], part: str, layer: int, source: TensorSource, experts: int
) -> Recipe:
    """`experts.gate_up_proj[_bias]` and its like from the dense projections it consists of.

    What an activation learns is copied once: all experts of a layer share it.
    """
    if part.startswith("experts.act_fn."):
        dense = LAYER.format(layer=layer) + part.removeprefix("experts.")
        info = TensorInfo(name, shape, source.tensors[dense].dtype)
        return Recipe((info,), (dense,), list, f"{name}: {dense}")
    kind = "bias" if part.endswith("_bias") else "weight"
    fused = part.removeprefix("experts.").removesuffix("_bias")
    projections = ("gate_proj", "up_proj") if fused == "gate_up_proj" else (fused,)
    names = tuple(f"{LAYER.format(layer=layer)}{projection}.{kind}" for projection in projections)
    dtype = source.tensors[names[0]].dtype
    compute = partial(_repeat, experts=experts)
    return Recipe(
        (TensorInfo(name, shape, dtype),), names, compute, f"{name}: {experts} copies of {' + '.join(names)}"
    )


def _repeat(tensors: Sequence[torch.Tensor], experts: int) -> list[torch.Tensor]:
    one = torch.cat(list(tensors), dim=0)
    return [one.expand(experts, *one.shape)]


def _constant(value: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [value]


def _twins(dense: MoebaConfig, config: MoebaConfig, folder: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A random small dense model, and what this very operation makes of it."""
    small = shrink(dense)
    chosen = [0] if small.num_hidden_layers == 1 or "dense" not in config.mlp_layer_types else [1]
    if "dense" not in config.mlp_layer_types:
        chosen = list(range(small.num_hidden_layers))
    experts = min(config.num_experts, 12)
    grown = sparse_config(small, experts, min(config.num_experts_per_tok, experts), chosen)
    first = MoebaForCausalLM(small)
    randomise(first, embedding_multiplier=first.config.embedding_multiplier)
    first.tie_weights()
    state = first.state_dict()
    if small.tie_word_embeddings:
        state.pop("lm_head.weight")
    rows = {layer: random_rows("normal", (experts, small.hidden_size), 1.0, 1, layer) for layer in chosen}
    planned = PlannedTensors(plan_upcycle(StateDict(state), small, grown, "normal", 0, rows))
    second = MoebaForCausalLM(grown)
    load_exactly(second, {name: planned.read(name) for name in planned.tensors})
    second.set_experts_implementation("eager")
    return first.eval(), second.eval()


def _copies(source: TensorSource, target: Checkpoint, config: MoebaConfig) -> Check:
    """Each expert of each sparse layer against the dense feed-forward, byte for byte."""
    wrong = []
    names = [name for name in target.tensors if ".mlp.experts." in name]
    for name in names:
        layer = int(name.split(".")[2])
        part = name.removeprefix(LAYER.format(layer=layer))
        recipe = _repeated(name, target.tensors[name].shape, part, layer, source, config.num_experts)
        (expected,) = recipe.compute([source.read(dense) for dense in recipe.sources])
        if not torch.equal(expected, target.read(name)):
            wrong.append(name)
    figures = {"tensors": len(names), "experts": config.num_experts}
    return Check(
        "expert copies", "failed" if wrong else "verified", figures, ", ".join(wrong[:5]), "checkpoint"
    )


def _exportable(config: MoebaConfig) -> bool:
    for model_type in EXPORT_ORDER:
        try:
            family_of(model_type).to_native(config)
        except ValueError:
            continue
        return True
    return False


def _load_dense(folder: Path) -> MoebaForCausalLM:
    return MoebaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"calibration needs the tokenizer of {folder}, which does not load: {reason}"
        ) from error


def _hash(rows: Mapping[int, torch.Tensor]) -> str | None:
    if not rows:
        return None
    digest = hashlib.sha256()
    for layer in sorted(rows):
        digest.update(rows[layer].numpy().tobytes())
    return digest.hexdigest()
