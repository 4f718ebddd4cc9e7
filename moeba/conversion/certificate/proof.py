"""Assemble a certificate for two model folders: files, configs, keys, what they compute, and the planted faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from ...configuration import MoebaConfig
from ...modeling import MoebaForCausalLM
from ..binding import bind, proven_code
from ..checkpoint import Checkpoint, resolve
from ..config_differences import TRAINING_FIELDS, differences
from ..families import family_of
from ..families.shared_tensors import LAYER
from ..family import Family
from ..json_files import listing
from ..pieces import TensorSource, pieces, read_pieces, same_bytes
from ..plan import PlannedTensors, moeba_shapes, plan_export, plan_import
from ..provenance import versions
from ..scratch import scratch
from ..threads import one_thread
from .battery import build_battery
from .comparison import EXACT, REORDERED, Comparison, first_divergence, implementations, rounding_noise
from .controls import faults_for
from .faint import FAINT_FAULTS, caught_by_faint_inputs, faint_inputs
from .fault import Fault
from .half_precision import HALVES, Order, compare_halves
from .report import Certificate, Check, Control
from .training import AMPLIFIED, LOSS_FAULT, TRAINING_FAULT, NoLossError, lost_fields
from .twin import CONTEXT, convert_twin, export_twin, half_twins, load_exactly, load_model, plain

# A model with more parameters is not run whole: its twin and the bytes of its tensors are the proof.
LARGEST_RUN = 2_000_000_000
LONGEST_ACTUAL, LONGEST_TWIN = 256, CONTEXT + 32
LONGEST_HALF = (
    CONTEXT  # tokens; rounding needs no more, and half precision is slow where a processor lacks it
)
TEXT = "Déjà vu: naïve café, 12 345 tokens…\n\tdef f(x):  return x**2  # 你好 <s> \u0065\u0301\n"

Twins = Callable[[Path], tuple[PreTrainedModel, PreTrainedModel]]


def certify(source: str | Path, target: str | Path, *, output: str | Path | None = None) -> Certificate:
    """Compare two model folders (or Hub ids) of any supported type, and write the certificate if `output` is given."""
    certificate = certify_folders(resolve(source), resolve(target))
    if output is not None:
        certificate.save(output)
    return certificate


def certify_folders(
    source: Path,
    target: Path,
    *,
    twins: Twins | None = None,
    operation: str | None = None,
    reshaped: bool | None = None,
    equal_experts: bool | None = None,
) -> Certificate:
    """
    Args:
        twins: builds a randomised small source and target by the operation that is being proven; by default it is built
            from the family's rows when one side is native.
        operation: what made the target; inferred from the model types by default.
        reshaped: the feed-forwards were rebuilt, so their sizes and names rightly differ; by default inferred from
            whether just one side has experts.
        equal_experts: the experts of a layer are copies of each other, so faults that mix them up change nothing;
            default: as `reshaped`.
    """
    first, second = Side(source), Side(target)
    expanded = reshaped
    if expanded is None:
        expanded = bool(first.config.sparse_layers) != bool(second.config.sparse_layers)
    equal = expanded if equal_experts is None else equal_experts
    certificate = Certificate(
        operation=operation or _operation(first, second, expanded),
        source=first.identity(),
        target={**second.identity(), "bound": bind(target), "code": proven_code(second.family is None)},
        versions=versions(),
        config_differences=[
            {
                "field": item.name,
                "source": item.first,
                "target": item.second,
                "verdict": _verdict(item.name, expanded),
            }
            for item in differences(first.config, second.config)
        ],
        keys=_keys(first, second, expanded),
    )
    unexplained = [item["field"] for item in certificate.config_differences if item["verdict"] == "different"]
    certificate.checks.append(
        Check("config", "failed" if unexplained else "verified", {"differences": len(certificate.config_differences)},
              f"unexplained: {', '.join(unexplained)}" if unexplained else "")
    )  # fmt: skip
    certificate.checks.append(_round_trip(certificate))
    certificate.checks.append(_tokenizers(source, target))
    certificate.checks.append(_training_fields(first, second))
    if misfits := _misfits(first, second, expanded):
        detail = f"not comparable: {listing(misfits)}"
        certificate.checks.append(Check("logits", "failed", detail=detail))
        return certificate

    def tolerance_for(one: PreTrainedModel, other: PreTrainedModel, limit: int) -> float:
        # A sum over several experts rounds otherwise than one feed-forward, and some models amplify any rounding.
        noise = rounding_noise((one, other), build_battery(_moeba_config(one, other, first), limit))
        return max(REORDERED if expanded else EXACT, 4 * noise)

    with scratch("proof") as folder, one_thread():
        build = twins or _family_twins(first, second)
        if build is not None:
            one, other = build(folder)
            tolerance = tolerance_for(one, other, LONGEST_TWIN)
            _compare(
                certificate, one, other, LONGEST_TWIN, tolerance, "randomised twin", first, second, expanded
            )
            _plant(certificate, one, other, tolerance, equal, _module_pairs(first, second))
            if twins is None:
                halves = half_twins(one, other, folder, first.half)
                _compare_halves(certificate, *halves, "randomised twin", first, second)
    if first.parameters + second.parameters > LARGEST_RUN:
        detail = f"{first.parameters + second.parameters:,} parameters are too many to run here"
        certificate.checks.append(Check("logits", "unverified", detail=detail, on="checkpoint"))
        return certificate
    one, other = load_model(source, first.drops), load_model(target, second.drops)
    tolerance = tolerance_for(one, other, LONGEST_ACTUAL)
    _compare(certificate, one, other, LONGEST_ACTUAL, tolerance, "checkpoint", first, second, expanded)
    if not certificate.negative_controls and not _fresh(one):
        if not any(isinstance(model, MoebaForCausalLM) for model in (one, other)):
            other = _as_moeba(second)
        _plant(certificate, one, other, tolerance, equal, _module_pairs(first, second))
    if first.dtype in HALVES and not expanded:
        del one, other
        halves = load_model(source, first.drops, first.half), load_model(target, second.drops, first.half)
        _compare_halves(certificate, *halves, "checkpoint", first, second)
    return certificate


class Side:
    """One of the two folders: its files, its config in Moeba's terms, and its tensors as Moeba holds them."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint(folder)
        self.model_type: str = self.checkpoint.config.get("model_type", "")
        self.family: Family | None = None
        if self.model_type == MoebaConfig.model_type:
            self.config = MoebaConfig.from_dict(dict(self.checkpoint.config))
            self.tensors: Any = self.checkpoint
            self.dropped: dict[str, str] = {}
            self.filled: list[str] = []
        else:
            self.family = family_of(self.model_type)
            plan, self.config = plan_import(self.checkpoint)
            self.tensors = PlannedTensors(plan)
            self.dropped, self.filled = plan.dropped, plan.filled
            self.bare_names = plan.bare_names

    @property
    def parameters(self) -> int:
        return self.config.num_params()

    @property
    def dtype(self) -> torch.dtype:
        """What most of its values are stored in."""
        sizes: dict[torch.dtype, int] = {}
        for info in self.checkpoint.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + math.prod(info.shape)
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def half(self) -> torch.dtype:
        """The half precision that it is run in: its own, or else bfloat16."""
        return self.dtype if self.dtype in HALVES else torch.bfloat16

    def drops(self, name: str) -> bool:
        """Whether a tensor carries nothing, by its name on disk or by the one that transformers loads it under."""
        if name in self.dropped or self.family is None:
            return name in self.dropped
        return self.family.drops(name, self.config) is not None

    @cached_property
    def module_names(self) -> dict[str, str]:
        """Moeba's name of a module -> its own: those with one weight on both sides, and the feed-forwards."""
        layer = LAYER if self.family is None else self.family.layer_prefix
        patterns = {f"{LAYER}.{part}": f"{layer}.{part}" for part in ("mlp", "mlp.gate", "mlp.experts")}
        if self.family is None:
            weights = [name for name in moeba_shapes(self.config) if name.endswith(".weight")]
            patterns |= {name.removesuffix(".weight"): name.removesuffix(".weight") for name in weights}
        else:
            for row in self.family.rows:
                if len(row.ours) == len(row.theirs) == 1 and row.ours[0].endswith(".weight"):
                    patterns[row.ours[0].removesuffix(".weight")] = row.theirs[0].removesuffix(".weight")
        layers = range(self.config.num_hidden_layers)
        return {
            ours.replace("{layer}", str(i)): theirs.replace("{layer}", str(i))
            for ours, theirs in patterns.items()
            for i in (layers if "{layer}" in ours else (0,))
        }

    def identity(self) -> dict[str, Any]:
        folder = self.checkpoint.folder
        unread = self.family.not_read(self.checkpoint.config) if self.family is not None else {}
        return {
            "path": folder.resolve().name,
            "model_type": self.model_type,
            **({"not_read": unread} if unread else {}),
            "files": self.checkpoint.sha256(),
        }


def _operation(first: Side, second: Side, expanded: bool) -> str:
    if expanded:
        return "upcycle" if second.config.sparse_layers else "densify"
    if first.family is None and second.family is not None:
        return "export"
    return "convert" if first.family is not None and second.family is None else "compare"


FEED_FORWARD = ".mlp."  # in Moeba's names
# Fields that rightly differ between a dense model and the mixture of experts made from it.
_EXPERT_FIELDS = {
    "mlp_layer_types", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "intermediate_size", "mlp_bias",
    "expert_bias", "shared_expert_intermediate_size", "shared_expert_gate", "shared_expert_combination",
    "router_type", "scoring_func", "norm_topk_prob", "norm_topk_eps", "norm_topk_min", "topk_sorted", "n_group",
    "topk_group", "group_mask", "group_scoring", "router_selection_bias", "routed_scaling_factor", "router_bias",
    "router_logit_softcapping", "router_param_dtype", "router_matmul_dtype", "router_score_dtype",
    "router_weight_dtype", "router_jitter_noise", "router_jitter_draws", "router_aux_loss_coef", "router_z_loss_coef",
    "output_router_logits", "per_layer_config",
}  # fmt: skip


def _verdict(name: str, expanded: bool) -> str:
    if name in TRAINING_FIELDS or name == "dtype":
        return "training only"
    return "derived" if expanded and name in _EXPERT_FIELDS else "different"


def _keys(first: Side, second: Side, expanded: bool) -> dict[str, Any]:
    """Counts, what was dropped, and whether the tensors come back bit for bit."""
    keys: dict[str, Any] = {
        "source": len(first.checkpoint.tensors),
        "target": len(second.checkpoint.tensors),
        "dropped": {**first.dropped, **second.dropped},
    }
    shapes = moeba_shapes(second.config)
    keys["missing"] = sorted(set(shapes) - set(second.tensors.tensors))
    keys["unexpected"] = sorted(set(second.tensors.tensors) - set(shapes))
    if expanded:
        keys["round_trip"] = "not applicable"
        keys["kept_bitwise"], keys["changed"] = _same_tensors(first, second)
        return keys
    _, changed = _same_tensors(first, second)
    lost = sorted(set(first.tensors.tensors) ^ set(second.tensors.tensors))
    returned = _returned(first) if first.family is not None else []
    keys["changed"] = [*changed, *lost, *returned]
    keys["round_trip"] = "bitwise" if not keys["changed"] else "different"
    return keys


def _same_tensors(first: Side, second: Side) -> tuple[int, list[str]]:
    """How many tensors are the same bytes under the same Moeba name, and the names of those that are not.

    Those of another shape are `_misfits`'s to judge.
    """
    before, after = first.tensors.tensors, second.tensors.tensors
    shared = [name for name in after if name in before and before[name].shape == after[name].shape]
    changed = [name for name in shared if not _same_tensor(first.tensors, name, second.tensors)]
    return len(shared) - len(changed), changed


def _misfits(first: Side, second: Side, expanded: bool) -> list[str]:
    """What keeps two models from being compared number by number."""
    layers = [side.config.num_hidden_layers for side in (first, second)]
    if layers[0] != layers[1]:
        return [f"{layers[0]} layers against {layers[1]}"]
    a, b = moeba_shapes(first.config), moeba_shapes(second.config)
    return [
        f"{name} {list(a[name])} against {list(b[name])}"
        for name in a
        if name in b and a[name] != b[name] and not (expanded and FEED_FORWARD in name)
    ]


def _returned(side: Side) -> list[str]:
    """Native tensors that do not come back, byte for byte, from their Moeba form."""
    assert side.family is not None
    back = PlannedTensors(plan_export(side.tensors, side.config, side.family, bare_names=side.bare_names))
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


def _round_trip(certificate: Certificate) -> Check:
    keys = certificate.keys
    wrong = [*keys["missing"], *keys["unexpected"], *keys["changed"]]
    figures = {"source": keys["source"], "target": keys["target"], "dropped": len(keys["dropped"])}
    detail = f"differ: {', '.join(wrong[:5])}" if wrong else f"round trip: {keys['round_trip']}"
    return Check("tensors", "failed" if wrong else "verified", figures, detail)


def _tokenizers(source: Path, target: Path) -> Check:
    """The same ids for one awkward text. A difference is reported and does not decide the verdict."""
    if not any(
        (folder / name).exists()
        for folder in (source, target)
        for name in ("tokenizer_config.json", "tokenizer.json")
    ):
        return Check("tokenizer", "not applicable", detail="the folders hold none")
    try:
        a, b = (
            AutoTokenizer.from_pretrained(folder, local_files_only=True)(TEXT)["input_ids"]
            for folder in (source, target)
        )
    except Exception as error:  # tokenizer backends raise anything
        return Check("tokenizer", "unverified", detail=" ".join(str(error).split())[:200])
    if a == b:
        return Check("tokenizer", "verified", {"tokens": len(a)})
    return Check(
        "tokenizer",
        "unverified",
        detail="AutoTokenizer reads other ids from the two folders: name tokenizer_class",
    )


def _training_fields(first: Side, second: Side) -> Check:
    """A native side's dropouts, jitter and loss coefficients come back from Moeba's terms as they stand in its file."""
    natives = [side for side in (first, second) if side.family is not None]
    if not natives:
        return Check("training fields", "not applicable", detail="both are Moeba's own")
    lost = [
        line for side in natives for line in lost_fields(side.family, side.checkpoint.config, side.config)
    ]
    return Check("training fields", "failed" if lost else "verified", detail=listing(lost))


def _family_twins(first: Side, second: Side) -> Twins | None:
    """Twins through the rows of the native side, if exactly one side is native and both have the same parts."""
    if bool(first.config.sparse_layers) != bool(second.config.sparse_layers):
        return None
    if first.family is not None and second.family is None:
        family, config = first.family, second.config
        return lambda folder: convert_twin(config, family, folder)
    if first.family is None and second.family is not None:
        family, config = second.family, first.config
        return lambda folder: export_twin(config, family, folder)
    return None


def _compare(
    certificate: Certificate, one: PreTrainedModel, other: PreTrainedModel, limit: int, tolerance: float, on: str,
    first: Side, second: Side, expanded: bool,
) -> None:  # fmt: skip
    battery = build_battery(_moeba_config(one, other, second), limit)
    trains_otherwise = _trains_otherwise(first, second, expanded)
    checks = Comparison(one, other, battery, tolerance, on, trains_otherwise, expanded).run()
    same_routers = bool(first.config.sparse_layers) == bool(second.config.sparse_layers)
    checks.append(faint_inputs(one, other, _module_pairs(first, second), same_routers, on))
    certificate.checks += [_with_reason(check, _order(first, second).reason) for check in checks]
    if any(check.status == "failed" for check in checks) and certificate.first_divergence is None:
        found = first_divergence(one, other, battery.longest, _module_pairs(first, second), tolerance)
        certificate.first_divergence = found and f"{found} ({on})"


def _with_reason(check: Check, reason: str) -> Check:
    """Logits that are equal to rounding say why, and what the stock model does otherwise in one way of running it."""
    told = reason and check.name.startswith("logits,")
    return replace(check, detail=f"{check.detail}; {reason}") if told else check


def _order(first: Side, second: Side) -> Order:
    """How the operations of the two sides differ."""
    families = {side.family.model_type: side.family for side in (first, second) if side.family is not None}
    if len(families) > 1:
        return Order("the models are of two families", rounds_otherwise=True)
    if len(families) == 1 and None in (first.family, second.family):
        family = next(iter(families.values()))
        return Order(family.reordered, family.rounds_otherwise)
    return Order()


def _trains_otherwise(first: Side, second: Side, expanded: bool) -> str:
    """Why the two sides may draw other things in training."""
    if expanded:
        return "the routers of rebuilt feed-forwards draw for themselves"
    families = [side.family for side in (first, second) if side.family is not None]
    return "; ".join(family.trains_otherwise for family in families if family.trains_otherwise)


def _compare_halves(
    certificate: Certificate, one: PreTrainedModel, other: PreTrainedModel, on: str, first: Side, second: Side
) -> None:
    ids = build_battery(_moeba_config(one, other, second), LONGEST_HALF).longest
    checks, controls = compare_halves(one, other, ids, _order(first, second), on)
    certificate.checks += checks
    certificate.negative_controls += controls


def _moeba_config(one: PreTrainedModel, other: PreTrainedModel, side: Side) -> MoebaConfig:
    """The config of the pair in Moeba's terms: that of a model of ours, or else of a folder."""
    return next((model.config for model in (other, one) if isinstance(model, MoebaForCausalLM)), side.config)


def _module_pairs(first: Side, second: Side) -> list[tuple[str, str]]:
    """Modules of the two models that should compute the same."""
    a, b = first.module_names, second.module_names
    return [(a[name], b[name]) for name in a if name in b]


def _as_moeba(side: Side) -> MoebaForCausalLM:
    """A native side as Moeba computes it: faults are planted in Moeba's parts."""
    model = MoebaForCausalLM(side.config)
    load_exactly(model, {name: side.tensors.read(name) for name in side.tensors.tensors})
    return plain(model)


def _plant(
    certificate: Certificate,
    one: PreTrainedModel,
    other: PreTrainedModel,
    tolerance: float,
    equal_experts: bool,
    pairs: list[tuple[str, str]],
) -> None:
    """Damage the Moeba side in every way that its config allows; each must push the difference over the tolerance."""
    target_is_ours = isinstance(other, MoebaForCausalLM)
    ours = other if target_is_ours else one
    if not isinstance(ours, MoebaForCausalLM):
        return
    battery = build_battery(ours.config, LONGEST_TWIN)
    for model in (one, other):
        model.set_attn_implementation(implementations(one, other)[0])

    def damaged(fault: Fault) -> tuple[PreTrainedModel, PreTrainedModel]:
        planted = fault.plant(ours)
        return (one, planted) if target_is_ours else (planted, other)

    relative = Comparison(*damaged(TRAINING_FAULT), battery, tolerance, "").training_difference()
    certificate.negative_controls.append(
        Control(TRAINING_FAULT.name, relative > AMPLIFIED * tolerance, relative)
    )
    if LOSS_FAULT.applies(ours.config):
        with suppress(NoLossError):
            gap = Comparison(*damaged(LOSS_FAULT), battery, tolerance, "").loss_difference()
            certificate.negative_controls.append(Control(LOSS_FAULT.name, gap > AMPLIFIED * tolerance, gap))
    for fault in FAINT_FAULTS:
        if not (fault.applies(ours.config) and fault.finds_something(ours)):
            continue
        if (found := caught_by_faint_inputs(*damaged(fault), pairs)) is not None:
            certificate.negative_controls.append(Control(fault.name, *found))
    for fault in faults_for(ours.config, equal_experts):
        if fault.finds_something(ours):
            worst, relative = Comparison(*damaged(fault), battery, tolerance, "").largest_difference()
            certificate.negative_controls.append(Control(fault.name, relative > tolerance, worst))


def _fresh(model: PreTrainedModel) -> bool:
    """Whether the weights look freshly initialised: every vector (norm, bias) is constant, and most faults hide."""
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return all(bool((vector == vector.flatten()[0]).all()) for vector in vectors)
