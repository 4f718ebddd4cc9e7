"""What the files of a model folder say about the model. A missing file is an absent fact: nothing is guessed.

- The figures of a certificate count only for the weights it names: their SHA-256 is computed and compared.
- A pickle is never run: of `training_args.bin` only plain values are read (see `training_arguments`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...configuration import MoebaConfig
from ...configuration.model_facts import cached_values, layer_view
from ...conversion.checkpoint import Checkpoint
from ...conversion.families import FAMILIES
from ...conversion.provenance import FILE as PROVENANCE_FILE
from ...conversion.selection import foreign_entries
from ...conversion.weight_files import PICKLE_FILE, PICKLE_INDEX, SAFE_FILE, SAFE_INDEX
from ...modeling.code_files import AUTO_MAP, code_files
from ..text.evaluation import EvaluationFacts, evaluation_facts
from ..text.surgery import SurgeryFacts, surgery_facts
from ..text.training import TrainingFacts, training_facts
from .records import (
    ROUTER_MAKERS,
    CertificateFacts,
    StepFacts,
    as_dict,
    as_dicts,
    as_int,
    as_text,
    as_texts,
    read_certificate,
    read_record,
    step_facts,
)

# Bytes of one weight. Quantised formats also store scales, which are not counted.
WEIGHT_BYTES = {"float32": 4.0, "bfloat16 or float16": 2.0, "8 bit": 1.0, "4 bit": 0.5}
CACHE_BYTES = {"float32": 4, "bfloat16 or float16": 2}
CACHE_TOKENS = 1000

_CAUSAL_LM = ("ForCausalLM", "LMHeadModel")  # how the names of their classes end
_PARAMETER_DTYPES = {"float64", "float32", "float16", "bfloat16"}
_BUFFER_DTYPES = {"int64", "bool"}  # positions and masks that older checkpoints store

# Where native configs keep the same fact under several names.
_SPELLINGS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "vocab_size": ("vocab_size",),
    "max_positions": ("max_position_embeddings", "n_positions"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "experts_per_token": ("num_experts_per_tok",),
}


@dataclass(frozen=True)
class ModelFacts:
    """From config.json: what can be named of any model, and `config` where a Moeba config says it all.

    A native model has one too if its family is known, as for the converter: the architecture is the same.
    """

    model_type: str | None
    architecture: str | None
    config: MoebaConfig | None = None
    layers: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    max_positions: int | None = None  # tokens
    experts: int | None = None  # routed experts of a sparse layer; the most, where layers differ
    experts_per_token: int | None = None
    carries_code: bool = False  # the code that auto_map names lies in the folder, and is Moeba's own

    @property
    def is_moeba(self) -> bool:
        return self.model_type == MoebaConfig.model_type

    @property
    def is_sparse(self) -> bool:
        return (
            bool(self.experts and self.experts > 1)
            if self.config is None
            else bool(self.config.sparse_layers)
        )


@dataclass(frozen=True)
class WeightFacts:
    """From the headers of the weight files."""

    files: Mapping[str, int]  # name -> bytes
    dtypes: Mapping[str, int]  # dtype -> values stored in it
    parameters: int | None  # stored in them; None where quantised ones are packed and cannot be counted

    @property
    def nbytes(self) -> int:
        return sum(self.files.values())


@dataclass(frozen=True)
class SizeFacts:
    """Counts and costs, in bytes: `memory` of the weights alone, `cache` of `CACHE_TOKENS` tokens."""

    total: int
    counted_in: str  # `config` or `weights`
    active: int | None  # used by one token's forward pass
    memory: Mapping[str, float]
    cache: Mapping[str, int] | None


@dataclass(frozen=True)
class TokenizerFacts:
    tokenizer_class: str | None
    tokens: int | None
    model_max_length: int | None  # tokens
    has_chat_template: bool
    special_tokens: Mapping[str, str]  # role -> token


@dataclass(frozen=True)
class Facts:
    """Everything that is known of a folder; None and empty mean that no file says it."""

    model: ModelFacts | None
    weights: WeightFacts | None
    size: SizeFacts | None
    tokenizer: TokenizerFacts | None
    steps: tuple[StepFacts, ...]  # oldest first
    certificate: CertificateFacts | None
    surgery: SurgeryFacts | None
    training: TrainingFacts | None
    evaluation: EvaluationFacts | None
    router: Literal["trained", "untrained", "unknown"] | None  # None: no operation here made a router


def gather_facts(folder: str | Path) -> Facts:
    """Read what the files in `folder` say.

    Weight files are hashed where a certificate or the provenance names their hashes, which reads them once.

    Raises:
        ValueError: there is no such folder, or a file in it is damaged: the message names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the folder that holds the model")
    model = _model_facts(folder)
    checkpoint = _open_checkpoint(folder)
    weights = None if checkpoint is None else _weight_facts(checkpoint)
    steps = step_facts(read_record(folder, PROVENANCE_FILE))
    certificate = read_certificate(folder)
    surgery, evaluation = surgery_facts(folder), evaluation_facts(folder)
    hashes = {}
    if checkpoint is not None and (
        (certificate and certificate.target_files)
        or (steps and steps[-1].target_files)
        or (evaluation and evaluation.files)
    ):
        hashes = checkpoint.sha256()
    if certificate:
        certificate = replace(
            certificate,
            is_of_these_weights=of_these_weights(certificate, hashes),
            is_lossy=certificate.is_lossy or bool(steps and steps[-1].is_lossy),
        )
    if surgery and steps and steps[-1].target_files and hashes:
        is_last = surgery.operation == steps[-1].operation
        untouched = is_last and _agree(steps[-1].target_files, hashes)
        surgery = replace(surgery, is_of_these_weights=untouched)
    if evaluation and evaluation.files and hashes and not _agree(evaluation.files, hashes):
        evaluation = None
    training = training_facts(folder)
    if training and steps and _is_untouched(steps, len(steps) - 1, certificate, hashes):
        training = replace(training, is_of_source=True)
    return Facts(
        model=model,
        weights=weights,
        size=_size_facts(model, weights),
        tokenizer=_tokenizer_facts(folder),
        steps=steps,
        certificate=certificate,
        surgery=surgery,
        training=training,
        evaluation=evaluation,
        router=_router_state(model, steps, certificate, hashes, training),
    )


def _model_facts(folder: Path) -> ModelFacts | None:
    values = read_record(folder, "config.json")
    if not values:
        return None
    architectures = as_texts(values.get("architectures"))
    facts = ModelFacts(
        model_type=as_text(values.get("model_type")),
        architecture=architectures[0] if architectures else None,
        carries_code=_carries_code(folder, as_dict(values.get("auto_map"))),
    )
    config = _known_config(values)
    if config is None:
        named: dict[str, Any] = {
            fact: next((n for name in names if (n := as_int(values.get(name))) is not None), None)
            for fact, names in _SPELLINGS.items()
        }
        return replace(facts, **named)
    sparse = [layer_view(config, layer) for layer in config.sparse_layers]
    return replace(
        facts,
        config=config,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        experts=max((layer.num_experts for layer in sparse), default=None),
        experts_per_token=max((layer.num_experts_per_tok for layer in sparse), default=None),
    )


def _known_config(values: dict[str, Any]) -> MoebaConfig | None:
    model_type = as_text(values.get("model_type"))
    if model_type == MoebaConfig.model_type:
        return MoebaConfig.from_dict(values)
    if model_type not in FAMILIES:
        return None
    try:
        return FAMILIES[model_type].to_moeba(FAMILIES[model_type].read_config(values))
    except Exception:  # the library raises many kinds for one bad field
        return None  # a variant that Moeba has no parts for


def _carries_code(folder: Path, auto_map: Mapping[str, Any]) -> bool:
    """Whether what `trust_remote_code=True` runs is this version's code to the byte, and nothing else."""
    if auto_map != AUTO_MAP or foreign_entries(folder):
        return False
    files = code_files()
    here = {path.name for path in folder.glob("*.py") if path.name in files and path.is_file()}
    return here == set(files) and all((folder / name).read_bytes() == files[name].encode() for name in files)


def _open_checkpoint(folder: Path) -> Checkpoint | None:
    weights = (SAFE_FILE, SAFE_INDEX, PICKLE_FILE, PICKLE_INDEX)
    is_complete = (folder / "config.json").is_file() and any((folder / name).is_file() for name in weights)
    return Checkpoint(folder) if is_complete else None


def _weight_facts(checkpoint: Checkpoint) -> WeightFacts:
    dtypes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        if not info.name.endswith("e_score_correction_bias"):  # a buffer
            dtype = str(info.dtype).removeprefix("torch.")
            dtypes[dtype] = dtypes.get(dtype, 0) + info.nbytes // info.dtype.itemsize
    is_packed = set(dtypes) - _PARAMETER_DTYPES - _BUFFER_DTYPES
    return WeightFacts(
        files={path.name: path.stat().st_size for path in checkpoint.weight_files},
        dtypes=dict(sorted(dtypes.items())),
        parameters=None
        if is_packed
        else sum(dtypes[dtype] for dtype in dtypes if dtype in _PARAMETER_DTYPES),
    )


def _size_facts(model: ModelFacts | None, weights: WeightFacts | None) -> SizeFacts | None:
    """Counted from the config for a causal language model; in the weight files for any other model."""
    if model is None:
        return None
    config, counted_in, total = model.config, "weights", weights.parameters if weights else None
    if config is not None and (model.architecture or "ForCausalLM").endswith(_CAUSAL_LM):
        counted_in, total = "config", config.num_params()
    if total is None:
        return None
    idle = None if config is None else config.num_params() - config.num_params(active_only=True)
    return SizeFacts(
        total=total,
        counted_in=counted_in,
        active=None if idle is None else total - idle,
        memory={name: total * size for name, size in WEIGHT_BYTES.items()},
        cache=_cache_facts(config) if config is not None and config.is_causal else None,
    )


def _cache_facts(config: MoebaConfig) -> dict[str, int]:
    """Bytes of keys and values for `CACHE_TOKENS` tokens; a sliding layer keeps no more than its window."""
    values = 0
    for layer, kind in enumerate(config.layer_types or []):
        view = layer_view(config, layer)
        kept = min(CACHE_TOKENS, view.sliding_window) if kind == "sliding_attention" else CACHE_TOKENS
        values += cached_values(view) * kept
    return {name: values * size for name, size in CACHE_BYTES.items()}


def _tokenizer_facts(folder: Path) -> TokenizerFacts | None:
    settings, backend = read_record(folder, "tokenizer_config.json"), read_record(folder, "tokenizer.json")
    if not settings and not backend:
        return None
    roles = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {role: settings[role] for role in roles if settings.get(role) is not None}
    limit = as_int(settings.get("model_max_length"))
    templates = ("chat_template.jinja", "chat_template.json")
    return TokenizerFacts(
        tokenizer_class=as_text(settings.get("tokenizer_class")),
        tokens=_count_tokens(backend) if backend else None,
        model_max_length=limit if limit is not None and limit < 10**12 else None,  # a huge one means none
        has_chat_template=bool(settings.get("chat_template"))
        or any((folder / name).is_file() for name in templates),
        special_tokens={role: str(as_dict(token).get("content", token)) for role, token in special.items()},
    )


def _count_tokens(backend: Mapping[str, Any]) -> int | None:
    """Different tokens of a tokenizer.json: the vocabulary (pairs in Unigram) and added tokens."""
    vocabulary = as_dict(backend.get("model")).get("vocab")
    if isinstance(vocabulary, list):
        vocabulary = [pair[0] for pair in vocabulary if isinstance(pair, list) and pair]
    if not vocabulary:
        return None
    return len({*vocabulary, *(token.get("content") for token in as_dicts(backend.get("added_tokens")))})


def _router_state(
    model: ModelFacts | None,
    steps: tuple[StepFacts, ...],
    certificate: CertificateFacts | None,
    hashes: Mapping[str, str],
    training: TrainingFacts | None,
) -> Literal["trained", "untrained", "unknown"] | None:
    """Whether the router that an operation made was trained since. Training files may be the parent's."""
    makers = [i for i, step in enumerate(steps) if step.operation in ROUTER_MAKERS]
    if model is None or not model.is_sparse or not makers:
        return None
    if _is_untouched(steps, makers[-1], certificate, hashes):
        return "untrained"
    if training is not None and training.steps:
        return "trained"
    # Training leaves its files in the folder where it ran, which is another one if operations followed.
    is_here = makers[-1] == len(steps) - 1
    return "untrained" if is_here and (training is None or training.has_state) else "unknown"


def _is_untouched(
    steps: tuple[StepFacts, ...], index: int, certificate: CertificateFacts | None, hashes: Mapping[str, str]
) -> bool:
    """Whether the weights that a step wrote are, by their hashes, those that came next."""
    is_last = index == len(steps) - 1
    wrote = steps[index].target_files
    if not wrote and is_last and certificate and certificate.operation == steps[index].operation:
        wrote = certificate.target_files
    # Where no hashes are recorded, this is not known and thus False.
    found = [hashes] if is_last else [source.files for source in steps[index + 1].sources]
    return any(_agree(wrote, files) for files in found)


def of_these_weights(certificate: CertificateFacts, hashes: Mapping[str, str]) -> bool | None:
    """Whether a certificate is of weight files with these hashes; None where one of the two names none."""
    return _agree(certificate.target_files, hashes) if certificate.target_files and hashes else None


def _agree(named: Mapping[str, str], found: Mapping[str, str]) -> bool:
    return bool(found) and all(named.get(name) == sha256 for name, sha256 in found.items())
