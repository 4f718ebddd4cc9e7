"""MoebaConfig: which part each dimension of the transformer uses, and how large it is.

Names are those of Llama, Qwen and Mixtral in transformers wherever they have one. Each architectural choice
is a `Literal` that a table in `moeba/modeling` turns into a small class.
"""

import copy
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Self

from ..library.peft_tables import fill_peft_tables
from ..library.upstream import CACHE, PreTrainedConfig, generation_fields, logging, strict
from ..library.window import require_transformers
from .attention_fields import AttentionFields
from .block_fields import BlockFields
from .expert_fields import ExpertFields, LayerKindFields
from .feed_forward_fields import FeedForwardFields
from .fields import documented
from .messages import LISTED, listing, nearest, short
from .model_facts import count_params, flops_per_token, kv_cache_bytes_per_token, layer_view, rope_of
from .overrides import OLD_NAMES, ROPE_NAMES, overridden, with_new_names
from .parallel_plans import EXPERT_PARALLEL, PIPELINE_PARALLEL, TENSOR_PARALLEL, tensor_parallel_plan
from .position_fields import PositionFields
from .ranges import dtype_problems
from .rope_rules import two_ropes
from .router_fields import RouterFields
from .schema import FILLED_IN, PARTS, alone_wrong, contradictions, idle_and_unsaid, said_in_vain
from .training_fields import TrainingFields
from .validation import with_value_errors
from .vocabulary_fields import VocabularyFields

# The first file of a Hub folder that is loaded. Libraries before 5 bring along only what it imports by itself.
require_transformers()

logger = logging.get_logger(__name__)

# Keyword arguments that PreTrainedConfig itself understands although they are no fields.
_LIBRARY_KWARGS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}
# Marks values that a file says, see `from_dict`.
_FROM_FILE = "_from_file"


@with_value_errors
@strict
class MoebaConfig(
    VocabularyFields,
    BlockFields,
    AttentionFields,
    PositionFields,
    FeedForwardFields,
    LayerKindFields,
    ExpertFields,
    RouterFields,
    TrainingFields,
    PreTrainedConfig,
):
    """One decoder or encoder of any shape: every field, with its type, stands under `Args`.

    Raises:
        ValueError: a field that does not exist (the nearest name is suggested), one out of range or without anything
            to act on, or fields that contradict each other.
    """

    model_type = "moeba"
    # What Trainer leaves out of predictions, which then are the logits.
    keys_to_ignore_at_inference = [CACHE, "aux_loss", "z_loss", "router_logits"]
    default_theta = 10000.0
    attribute_map = {
        "num_local_experts": "num_experts",
        "n_routed_experts": "num_experts",
        "moe_num_experts": "num_experts",
        "rms_norm_eps": "norm_eps",
        "layer_norm_eps": "norm_eps",
        "layer_norm_epsilon": "norm_eps",
        "aux_loss_coef": "router_aux_loss_coef",
    }

    base_model_tp_plan = TENSOR_PARALLEL
    base_model_ep_plan = EXPERT_PARALLEL  # type: ignore[assignment]  # annotated there as the plan below
    base_model_pp_plan = PIPELINE_PARALLEL

    def __post_init__(self, **kwargs: Any) -> None:
        # `MoebaConfig(**config.to_dict())` says what a file says.
        from_file = kwargs.pop(_FROM_FILE, False) or "model_type" in kwargs
        self.refuse_unknown(kwargs)
        self._take_other_spellings(kwargs)
        self._refuse(dtype_problems(self.dtype, kwargs.get("torch_dtype")))
        self._refuse(alone_wrong(vars(self) | kwargs))  # before lists as long as a number says are made
        for name, value in FILLED_IN.items():
            if getattr(self, name) is None:
                setattr(self, name, value(self))
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            del self.rope_parameters
        self._plan_parallel()
        if not from_file:
            self.validate()
            self._refuse(said_in_vain(self).values())
        self._said: set[str] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_said" in vars(self):
            self._said.add(self.attribute_map.get(name, name))

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Gather all spellings of the rope settings in `rope_parameters`; refuse them without rope."""
        if self.position_embedding_type != "rope":
            rope = {"rope_parameters": self.rope_parameters}
            rope |= {name: kwargs.pop(name, None) for name in set(ROPE_NAMES)}
            for name, value in rope.items():
                if value is not None:
                    raise ValueError(
                        f"{name}={value} has no effect with position_embedding_type="
                        f"'{self.position_embedding_type}': remove it, or choose 'rope'."
                    )
            return kwargs
        self._refuse(two_ropes(kwargs, self.rope_parameters))
        self.rope_parameters = copy.deepcopy(kwargs.pop("rope_scaling", None) or self.rope_parameters or {})
        trained_length = kwargs.pop("original_max_position_embeddings", None)
        if trained_length is not None:
            for rope in self._ropes():
                rope.setdefault("original_max_position_embeddings", trained_length)
        return super().convert_rope_params_to_dict(**kwargs)

    def _ropes(self) -> list[dict[str, Any]]:
        """The rope settings, or those of each kind of layers."""
        rope = rope_of(self)
        return [rope[kind] for kind in self.nested_rope_parameter_keys(rope)] or [rope]

    def _take_other_spellings(self, kwargs: dict[str, Any]) -> None:
        """Read fields given by another or an old name; a field given twice must have the same value."""
        if old := {name: kwargs.pop(name) for name in OLD_NAMES if name in kwargs}:
            for name, value in with_new_names({"logit_scale": self.logit_scale, **old}).items():
                setattr(self, name, value)
        defaults = {field.name: field.default for field in fields(self)}
        for alias in [name for name in kwargs if name in self.attribute_map]:
            name, value = self.attribute_map[alias], kwargs.pop(alias)
            if getattr(self, name) not in (defaults[name], value):
                raise ValueError(
                    f"{alias}={value} contradicts {name}={getattr(self, name)}: they are one field."
                )
            setattr(self, name, value)

    @classmethod
    def _known(cls) -> set[str]:
        return (
            {field.name for field in fields(cls)}
            | set(cls.attribute_map)
            | _LIBRARY_KWARGS
            | set(ROPE_NAMES)
            | set(OLD_NAMES)
        )

    @classmethod
    def unknown_fields(cls, values: Mapping[str, Any]) -> list[str]:
        """The names among `values` that are no field and nothing that transformers understands."""
        accepted = cls._known() | generation_fields()
        return sorted(name for name in values if name not in accepted and not name.startswith("_"))

    @classmethod
    def refuse_unknown(cls, values: Mapping[str, Any]) -> None:
        """Raise a ValueError that names each unknown field, its value and the nearest field there is."""
        if unknown := cls.unknown_fields(values):
            hints = [
                f"{name}={short(values[name])} (nearest field: {nearest(name, cls._known())})"
                for name in unknown[:LISTED]  # of thousands of names the nearest take minutes
            ]
            raise ValueError(f"MoebaConfig has no field {listing([*hints, *unknown[LISTED:]])}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """As in transformers; fields among `kwargs` are said anew and validated with all others.

        Only what somebody says is refused where nothing would read it. What `save_pretrained` wrote must load again:
        attributes that someone added to a saved config are kept, with a warning, and so is a field of it that has
        nothing to act on.

        Raises:
            ValueError: a field out of range, fields that contradict each other, or one of `kwargs` without effect.
        """
        names = (
            {field.name for field in fields(cls)} - {"dtype"}
            | set(cls.attribute_map)
            | {*ROPE_NAMES, *OLD_NAMES}
        )
        given = with_new_names({name: kwargs.pop(name) for name in list(kwargs) if name in names})
        said = {cls.attribute_map.get(name, name): value for name, value in given.items()}
        values = overridden(with_new_names(config_dict, of_file=True), said, cls.attribute_map)
        extra = {name: values.pop(name) for name in cls.unknown_fields(values)}
        cls._refuse(
            f"config.json has {name}: a config has a method of that name"
            for name in extra
            if hasattr(cls, name)
        )
        result = super().from_dict({**values, _FROM_FILE: True}, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        if said:
            said |= {"rope_parameters": None} if "rope_scaling" in said else {}
            cls._refuse(why for name, why in said_in_vain(config).items() if name in said)
        for name, value in extra.items():
            logger.warning(
                f"config.json has {name}={value!r}, which MoebaConfig does not know: it changes nothing."
            )
            setattr(config, name, value)
        config._said = set()
        return result

    def __eq__(self, other: object) -> bool:
        """Equal in all that they hold; `rope_parameters` may be absent, which a dataclass would not take."""
        if not isinstance(other, MoebaConfig):
            return NotImplemented
        return {**vars(self), "_said": None} == {**vars(other), "_said": None}

    def to_dict(self) -> dict[str, Any]:
        """As in transformers. PEFT calls it before it looks a model type's targets up, which is when it learns them."""
        fill_peft_tables(self.model_type)
        values = super().to_dict()
        values.pop("_said", None)
        return values

    def settle(self) -> None:
        """Called when a model is built: fields may have been set since the config was made.

        One that was set and has nothing to act on is told, and not refused: tools set such on the config of any model.

        Raises:
            ValueError: as the constructor, of the fields as they are now.
        """
        self.validate()
        for name, why in said_in_vain(self).items():
            if name in self._said:
                logger.warning(why)
        self._plan_parallel()

    def _plan_parallel(self) -> None:
        self.base_model_tp_plan = tensor_parallel_plan(self)  # type: ignore[misc]  # a class's there, a model's here

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json says: a field that has nothing to act on is left out where nobody gave it a value."""
        values = super().to_diff_dict()
        unsaid = () if self.is_heterogeneous else idle_and_unsaid(self)
        return {name: value for name, value in values.items() if name not in unsaid}

    def validate_architecture(self) -> None:
        """Refuse fields that contradict each other (`@strict` runs this at construction)."""
        if self.is_heterogeneous:
            super().validate_architecture()
            return
        self._refuse(contradictions(self))

    @staticmethod
    def _refuse(problems: Iterable[str]) -> None:
        for problem in problems:
            raise ValueError(f"{problem}.")

    def validate_rope(self) -> None:
        """As in transformers, of the part of a head that rotates; where layers differ in heads, any one will do."""
        view = layer_view(self, 0)
        if self.qk_rope_head_dim is not None:
            view = copy.copy(view)
            view.head_dim = self.qk_rope_head_dim
        try:
            super(MoebaConfig, view).validate_rope()
        except (TypeError, ValueError, KeyError):  # said better with the field and its value
            self._refuse(contradictions(view))
            raise

    @property
    def logits_scaling(self) -> float:
        """The old name of a `logit_scale` that divides; 1 where it multiplies."""
        return self.logit_scale if self.logit_scale_operation == "divide" else 1.0

    @logits_scaling.setter
    def logits_scaling(self, divisor: float) -> None:
        for name, value in with_new_names({"logits_scaling": divisor}).items():
            setattr(self, name, value)

    @property
    def rope_is_per_layer_type(self) -> bool:
        """Whether `rope_parameters` holds one dict for each layer type instead of one for all."""
        return bool(self.nested_rope_parameter_keys(rope_of(self)))

    @property
    def rotary_head_dim(self) -> int:
        """Width of the part of a head that rope sees: all of it, or latent attention's rotated part."""
        return self.head_dim if self.qk_rope_head_dim is None else self.qk_rope_head_dim

    @property
    def sparse_layers(self) -> list[int]:
        """Indices of the layers whose feed-forward is a mixture of experts."""
        return [i for i, kind in enumerate(self.mlp_layer_types or []) if kind == "sparse"]

    def num_params(self, active_only: bool = False) -> int:
        """Parameters of the causal language model; with `active_only`, those that one token's pass uses."""
        return count_params(self, active_only=active_only)

    def flops_per_token(self, context_length: int = 0) -> int:
        """Floating-point operations of the forward pass of one token after `context_length` earlier ones."""
        return flops_per_token(self, context_length)

    def kv_cache_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes that each token adds to the KV cache while no sliding window is full."""
        return kv_cache_bytes_per_token(self, bytes_per_value)


MoebaConfig.__doc__ = f"{inspect.cleandoc(MoebaConfig.__doc__ or '')}\n\n{documented(*PARTS)}"
# Tools take a config that has the attribute for one that rotates: where nothing does, it is absent.
if "rope_parameters" in vars(PositionFields):  # not when this module is loaded a second time
    del PositionFields.rope_parameters

__all__ = ["MoebaConfig"]
