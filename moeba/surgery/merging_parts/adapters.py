"""A checkpoint with a LoRA adapter merged into it, one tensor at a time.

PEFT itself decides which modules an adapter changes, what its tensors are called, and what a merged weight is: the
base model is built without memory, the adapter is put into it, and of that skeleton one layer is filled whenever one of
its weights is read. So ranks and alphas by pattern, rank stabilisation, DoRA, transposed projections, chosen layers,
trained biases and modules saved whole all mean what they mean to PEFT.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...configuration import MoebaConfig
from ...conversion.checkpoint import Checkpoint, count_nonfinite, sha256_of
from ...conversion.convert import moeba_config
from ...conversion.families import family_of_config
from ...conversion.inputs import Inputs
from ...conversion.json_files import listing, read_json
from ...conversion.paths import expanded
from ...conversion.weight_files import PickledFile, SafetensorsFile, TensorInfo, WeightFile

CONFIG_FILE, SAFE_FILE, PICKLE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
NAME = "default"
PREFIX = "base_model.model."  # of a saved adapter's tensor names
# Beginnings that leave the base weights as they are: others change them, and the adapter counts from the changed ones.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
# What needs more than a weight to be changed once, or what PEFT cannot merge.
_REFUSED = ("layer_replication", "trainable_token_indices", "target_parameters", "megatron_config")


@dataclass(frozen=True)
class _Change:
    """What replaces one tensor of the checkpoint.

    Attributes:
        layer: the name of the adapted module, whose merged `parameter` it is; None: the adapter holds it whole.
        parameter: its name in the base layer; or the whole tensor's name in the adapter.
    """

    layer: str | None
    parameter: str


class AdaptedCheckpoint(Checkpoint):
    """A native or Moeba checkpoint as `merge_and_unload` would leave it.

    Args:
        folder: of the base model. adapter: a folder that PEFT wrote.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: it is no LoRA adapter, belongs to another model, or does what cannot be merged; tensors of it that
            have no place are named.
    """

    def __init__(self, folder: str | Path, adapter: str | Path) -> None:
        super().__init__(folder)
        self.adapter = Path(adapter)
        self._file = _open_adapter(self.adapter)
        self.inputs += Inputs([self._file.path])
        stored = {name.removeprefix(PREFIX): name for name in self._file.tensors}
        self._skeleton = _skeleton(self)
        if self._grow_tables(stored):
            self._skeleton = _skeleton(self)
        places = self._inject(self._skeleton, stored)
        # The adapter's tensor behind each parameter of the skeleton.
        self._given = {places[name]: stored[name] for name in stored}
        self.changed: dict[str, _Change] = self._changes()

    def read(self, name: str) -> torch.Tensor:
        from ...library.peft_internals import LoraLayer

        change = self.changed.get(name)
        if change is None:
            return super().read(name)
        dtype = self.tensors[name].dtype
        if change.layer is None:
            return self._adapter_tensor(change.parameter).to(dtype)
        layer = copy.deepcopy(self._skeleton.get_submodule(change.layer))
        assert isinstance(layer, LoraLayer)
        state = {
            part: self._value(f"{change.layer}.{part}", tensor) for part, tensor in layer.state_dict().items()
        }
        layer.load_state_dict(state, assign=True)
        layer.merge(adapter_names=[NAME])
        merged = layer.get_base_layer().get_parameter(change.parameter).detach().to(dtype).contiguous()
        if bad := count_nonfinite(merged):
            raise ValueError(f"the adapter {self.adapter} makes {bad} values of {name} NaN or Inf")
        return merged

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        if name in self.changed:
            yield self.read(name)
        else:
            yield from super().pieces(name)

    def sha256(self) -> dict[str, str]:
        return {**super().sha256(), f"{self.adapter.name}/{self._file.path.name}": sha256_of(self._file.path)}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint().encode())
        digest.update((self.adapter / CONFIG_FILE).read_bytes())
        status = self._file.path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _grow_tables(self, stored: dict[str, str]) -> bool:
        """Give the model the rows of the adapter's own embedding and head, where tokens were added in training.

        Returns whether any were.

        Raises:
            ValueError: the adapter has such an embedding and not the head that belongs to it, or the other way round.
        """
        embedding, head = self._skeleton.get_input_embeddings(), self._skeleton.get_output_embeddings()
        rows: dict[str, int | None] = {}
        for name, module in self._skeleton.named_modules():
            if module is embedding or module is head:
                for part, tensor in module.named_parameters():
                    if module is head and tensor is embedding.weight:
                        continue  # tied, which is refused where it is changed
                    given = stored.get(f"{name}.{part}")
                    rows[f"{name}.{part}"] = None if given is None else self._file.tensors[given].shape[0]
        found = {count for count in rows.values() if count is not None} - {self.config.get("vocab_size")}
        if not found:
            return False
        if len(found) > 1 or not all(rows.values()):
            told = ", ".join(f"{name} {count or 'absent'}" for name, count in rows.items())
            raise ValueError(
                f"{self._named()}: it was trained with another number of tokens, and does not hold all tables for them "
                f"({told}): train it with modules_to_save of the embedding and the head."
            )
        (size,) = found
        self.config = {**self.config, "vocab_size": size}
        for place in rows:
            name = self._stored_name(place)
            info = self.tensors[name]
            self.tensors[name] = TensorInfo(name, (size, *info.shape[1:]), info.dtype)
        return True

    def _inject(self, model: PreTrainedModel, stored: dict[str, str]) -> dict[str, str]:
        """Put the adapter into the base model, all without memory. Returns where each saved tensor belongs in it."""
        import peft

        config = _lora_config(self.adapter)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        self._tied = embedding.weight if head is not None and head.weight is embedding.weight else None
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tied weights, which are refused here
                peft.inject_adapter_in_model(config, model, NAME, low_cpu_mem_usage=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(f"{self._named()}: {' '.join(str(error).split())}") from error
        names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
        needed, allowed = (
            peft.get_peft_model_state_dict(
                model, model.state_dict(keep_vars=True), NAME, save_embedding_layers=embeddings
            )
            for embeddings in (False, True)
        )
        problems = [f"missing {name}" for name in needed if name not in stored]
        problems += [f"{name} has no place in the base model" for name in stored if name not in allowed]
        for name in stored.keys() & allowed.keys():
            found, expected = self._file.tensors[stored[name]].shape, tuple(allowed[name].shape)
            if found != expected:
                problems.append(f"{name} has shape {list(found)}, the base model needs {list(expected)}")
        if problems:
            raise ValueError(f"{self._named()}: {listing(sorted(problems))}")
        return {name: names[id(tensor)] for name, tensor in allowed.items()}

    def _changes(self) -> dict[str, _Change]:
        """By the checkpoint's names: the tensors that the adapter changes, and how."""
        from ...library.peft_internals import LoraLayer, ModulesToSaveWrapper

        found: dict[str, _Change] = {}
        for name, module in self._skeleton.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                for part, _ in module.original_module.named_parameters():
                    given = self._given[f"{name}.modules_to_save.{NAME}.{part}"]
                    self._add(
                        found,
                        f"{name}.{part}",
                        module.original_module.get_parameter(part),
                        _Change(None, given),
                    )
            elif isinstance(module, LoraLayer):
                variant = module.lora_variant.get(NAME)
                if variant is not None and not type(variant).__name__.startswith("Dora"):
                    raise ValueError(f"{self._named()}: {type(variant).__name__} at {name} is not supported")
                for part, tensor in module.get_base_layer().named_parameters():
                    is_bias = part == "bias" and not module.lora_bias.get(NAME)
                    if not is_bias or f"{name}.base_layer.bias" in self._given:
                        self._add(found, f"{name}.{part}", tensor, _Change(name, part))
        for place, given in self._given.items():
            # Parameters of the base model that were trained as they are: biases, or embeddings saved with the adapter.
            # One that a module saved whole stands for is saved beside it at times, and counts no more.
            if ".base_layer." not in place and ".original_module." not in place and f".{NAME}" not in place:
                self._add(found, place, self._skeleton.get_parameter(place), _Change(None, given))
        if not found:
            raise ValueError(f"{self._named()} changes nothing")
        return found

    def _add(self, found: dict[str, _Change], name: str, tensor: nn.Parameter, change: _Change) -> None:
        if tensor is self._tied:
            raise ValueError(
                f"{self._named()}: it changes {name}, which is tied to another tensor, so that merged it would "
                "change both: set tie_word_embeddings=false and store the head in the base model first."
            )
        found[self._stored_name(name)] = change

    def _value(self, place: str, tensor: torch.Tensor) -> torch.Tensor:
        """What a parameter of an adapted layer holds, from the adapter or from the base model."""
        if place in self._given:
            value = self._adapter_tensor(self._given[place])
            is_base = ".base_layer." in place
            return value.to(self.tensors[self._stored_name(place)].dtype) if is_base else _widened(value)
        return super().read(self._stored_name(place))

    def _stored_name(self, place: str) -> str:
        """The checkpoint's name of a parameter of the base model."""
        name = place.replace(".base_layer.", ".")
        bare = name.removeprefix(f"{self._skeleton.base_model_prefix}.")
        for candidate in (name, bare):
            if candidate in self.tensors:
                return candidate
        raise ValueError(
            f"{self._named()}: it changes {name}, which {self.folder} does not hold by that name"
        )

    def _adapter_tensor(self, name: str) -> torch.Tensor:
        tensor = self._file.read(name)
        if bad := count_nonfinite(tensor):
            raise ValueError(
                f"{name} in {self._file.path} holds {bad} NaN or Inf values: the file is damaged"
            )
        return tensor

    def _named(self) -> str:
        return f"the adapter {self.adapter} on {self.folder}"


def resolve_adapter(given: str | Path, revision: str | None = None) -> Path:
    """A local folder for a path or a Hub id.

    Raises:
        ValueError: there is no adapter.
    """
    folder = expanded(given)
    if not folder.is_dir():
        try:
            patterns = [CONFIG_FILE, SAFE_FILE, PICKLE_FILE, "tokenizer*", "special_tokens_map.json"]
            folder = Path(snapshot_download(str(given), revision=revision, allow_patterns=patterns))
        except Exception as error:  # whatever the client makes of a name that is none
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{given} is neither a folder here nor an adapter on the Hub: {reason}"
            ) from error
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{given} is no PEFT adapter: it has no {CONFIG_FILE}")
    return folder


def _skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """The stock model of a folder, or Moeba's, without memory."""
    if checkpoint.config.get("model_type") == MoebaConfig.model_type:
        config: Any = moeba_config(checkpoint)
    else:
        config = family_of_config(checkpoint.config).read_config(checkpoint.config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _lora_config(folder: Path) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need PEFT: pip install peft") from error
    stated = read_json(folder / CONFIG_FILE)
    if stated.get("peft_type") != "LORA":
        raise ValueError(f"{folder} is a {stated.get('peft_type')!r} adapter: only LORA can be merged here")
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
    except Exception as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {' '.join(str(error).split())}") from error
    for name in _REFUSED:
        if getattr(config, name, None):
            raise ValueError(f"{folder}: {name}={getattr(config, name)!r} is not supported")
    if config.init_lora_weights not in _STARTS:
        raise ValueError(
            f"{folder}: init_lora_weights={config.init_lora_weights!r} changed the base weights when training began: "
            "save it with path_initial_model_for_weight_conversion, which makes a plain LoRA adapter of it."
        )
    config.init_lora_weights = False  # nothing is drawn: every tensor is read
    config.inference_mode = True
    return config


def _open_adapter(folder: Path) -> WeightFile:
    if (folder / SAFE_FILE).is_file():
        return SafetensorsFile(folder / SAFE_FILE)
    if (folder / PICKLE_FILE).is_file():
        return PickledFile(folder / PICKLE_FILE)
    raise ValueError(f"{folder} holds neither {SAFE_FILE} nor {PICKLE_FILE}")


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """An adapter's own weights as PEFT loads them: in float32 where they were stored in less."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
