"""MoebaConfig: which part each dimension of the transformer uses, and how large it is.

Names are those of Llama, Qwen and Mixtral in transformers wherever they have one. Each architectural choice
is a `Literal` that a table in `moeba/modeling` turns into a small class.
"""

import copy
import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from .model_facts import count_params, flops_per_token, kv_cache_bytes_per_token, layer_view

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
_ROPE_KWARGS = {"original_max_position_embeddings", "partial_rotary_factor", "rope_scaling", "rope_theta"}


# No postponed annotations in this file: `@strict` checks each field against what its annotation evaluates to.
@strict
class MoebaConfig(PreTrainedConfig):
    r"""
    Args:
        vocab_size (`int`): number of token ids.
        hidden_size (`int`): width of the residual stream.
        intermediate_size (`int`): width of a dense feed-forward.
        num_hidden_layers (`int`): number of transformer blocks.
        num_attention_heads (`int`): query heads.
        num_key_value_heads (`int`, *optional*): key/value heads (grouped-query attention); default: one per
            query head.
        head_dim (`int`, *optional*): width of one head; default `hidden_size // num_attention_heads`.
        max_position_embeddings (`int`): longest trained sequence, in tokens; a hard limit for `learned`
            positions.
        block_order (`str`): where the norms stand relative to the two residual branches, see
            `modeling/blocks.py`.
        residual_multiplier (`float`): factor on each branch before it is added to the residual stream.
        final_norm (`bool`): normalise once more after the last block.
        norm_type (`str`): see `modeling/norms.py`. `norm_eps` (`float`) and `norm_bias` (layer norms only) go
            with it.
        position_embedding_type (`str`): `rope`, `learned`, `sinusoidal` or `none`, see
            `modeling/positions.py`.
        rope_parameters (`dict`, *optional*): any rope type of transformers, with `partial_rotary_factor`; one
            dict, or one for each kind in `layer_types` (None: layers of that kind are not rotated).
        position_offset (`int`): added to each position before a learned table is read.
        embedding_multiplier (`float`): factor on the token embeddings.
        attention_bias (`bool`): bias of the query, key and value projections.
        attention_output_bias (`bool`, *optional*): bias of the output projection; default: as
            `attention_bias`.
        qk_norm (`str`): `none`, `head` (over each head) or `full` (over all heads together), before the
            rotation.
        attention_multiplier (`float`, *optional*): factor on query-key products; default `head_dim ** -0.5`.
        attn_logit_softcapping (`float`, *optional*): scores become `c * tanh(scores / c)`.
        layer_types (`list[str]`, *optional*): `full_attention` or `sliding_attention` for each layer;
            default: sliding everywhere when `sliding_window` is given, else full.
        sliding_window (`int`, *optional*): tokens that a sliding layer sees, itself included.
        is_causal (`bool`): False lets every token see the whole sequence (for encoders; no causal head then).
        feed_forward_type (`str`): `gated` (down(act(gate) * up)) or `mlp` (down(act(up))).
        hidden_act (`str`): any activation of transformers.
        mlp_bias (`bool`): biases in dense and shared feed-forwards.
        num_experts (`int`): routed experts of a sparse layer; 0 makes the model dense.
        num_experts_per_tok (`int`): experts that each token visits.
        moe_intermediate_size (`int`, *optional*): width of one expert; default `intermediate_size`.
        mlp_layer_types (`list[str]`, *optional*): `dense` or `sparse` for each layer; default all sparse if
            there are experts.
        expert_bias (`bool`): biases inside the routed experts.
        shared_expert_intermediate_size (`int`): width of the expert that every token visits; 0 for none.
        shared_expert_gate (`bool`): multiply the shared expert by the sigmoid of a learned score.
        scoring_func (`str`): `softmax` or `sigmoid` turns router logits into scores.
        norm_topk_prob (`bool`): renormalise the chosen scores to sum to 1.
        norm_topk_eps (`float`): added to that sum.
        n_group, topk_group (`int`): experts are chosen from the `topk_group` best of `n_group` groups.
        router_selection_bias (`bool`): a buffer added to the scores for choosing only (loss-free balancing).
        routed_scaling_factor (`float`): factor on the routed experts' weights.
        router_bias (`bool`): bias of the router's projection.
        router_matmul_dtype, router_weight_dtype (`str`): `model` or `float32`; they decide which experts win
            in bf16.
        router_jitter_noise (`float`): in training, the layer input is multiplied by uniform(1 - x, 1 + x).
        router_aux_loss_coef, router_z_loss_coef (`float`): see `modeling/balancing.py`.
        lm_head_bias (`bool`), logit_scale (`float`), final_logit_softcapping (`float`, *optional*): the head.

    Raises:
        ValueError: a field that does not exist (the nearest name is suggested), or fields that contradict
            each other.
    """

    model_type = "moeba"
    keys_to_ignore_at_inference = ["past_key_values"]
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

    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.up_proj": "colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.shared_expert.gate_proj": "colwise",
        "layers.*.mlp.shared_expert.up_proj": "colwise",
        "layers.*.mlp.shared_expert.down_proj": "rowwise",
    }
    base_model_ep_plan = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.gate_up_proj_bias": "grouped_gemm",
        "layers.*.mlp.experts.up_proj": "grouped_gemm",
        "layers.*.mlp.experts.up_proj_bias": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj_bias": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    # Sizes
    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048

    # Blocks and norms
    block_order: Literal[
        "pre_norm", "post_norm", "sandwich_norm", "output_norm", "parallel", "parallel_two_norms"
    ] = "pre_norm"
    residual_multiplier: float | int = 1.0
    final_norm: bool = True
    norm_type: Literal[
        "rmsnorm",
        "rmsnorm_float32",
        "rmsnorm_unit_offset",
        "rmsnorm_nonparametric",
        "layernorm",
        "layernorm_nonparametric",
    ] = "rmsnorm"
    norm_eps: float = 1e-6
    norm_bias: bool = True

    # Embeddings and positions
    tie_word_embeddings: bool = False
    embedding_multiplier: float | int = 1.0
    position_embedding_type: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    rope_parameters: dict | None = None
    position_offset: int = 0

    # Attention
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    qk_norm: Literal["none", "head", "full"] = "none"
    attention_multiplier: float | int | None = None
    attn_logit_softcapping: float | int | None = None
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    is_causal: bool = True

    # Feed-forward
    feed_forward_type: Literal["gated", "mlp"] = "gated"
    hidden_act: str = "silu"
    mlp_bias: bool = False

    # Experts
    num_experts: int = 0
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None
    mlp_layer_types: list[str] | None = None
    expert_bias: bool = False
    shared_expert_intermediate_size: int = 0
    shared_expert_gate: bool = False

    # Router
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: bool = True
    norm_topk_eps: float = 0.0
    n_group: int = 1
    topk_group: int = 1
    router_selection_bias: bool = False
    routed_scaling_factor: float | int = 1.0
    router_bias: bool = False
    router_matmul_dtype: Literal["model", "float32"] = "model"
    router_weight_dtype: Literal["model", "float32"] = "model"
    router_jitter_noise: float | int = 0.0
    router_aux_loss_coef: float | int = 0.001
    router_z_loss_coef: float | int = 0.0
    output_router_logits: bool = False

    # Head
    lm_head_bias: bool = False
    logit_scale: float | int = 1.0
    final_logit_softcapping: float | int | None = None

    # Training and generation
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.refuse_unknown(kwargs)
        self._take_other_spellings(kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads="
                    f"{self.num_attention_heads}: give head_dim."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.attention_output_bias is None:
            self.attention_output_bias = self.attention_bias
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        if self.mlp_layer_types is None:
            self.mlp_layer_types = ["sparse" if self.num_experts else "dense"] * self.num_hidden_layers
        super().__post_init__(**kwargs)
        self.base_model_tp_plan = self._tensor_parallel_plan()

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Gather all spellings of the rope settings in `rope_parameters`; refuse them without rope."""
        if self.position_embedding_type != "rope":
            rope = {"rope_parameters": self.rope_parameters}
            rope |= {name: kwargs.pop(name, None) for name in _ROPE_KWARGS}
            for name, value in rope.items():
                if value is not None:
                    raise ValueError(
                        f"{name}={value} has no effect with position_embedding_type="
                        f"'{self.position_embedding_type}': remove it, or choose 'rope'."
                    )
            return kwargs
        self.rope_parameters = copy.deepcopy(kwargs.pop("rope_scaling", None) or self.rope_parameters or {})
        trained_length = kwargs.pop("original_max_position_embeddings", None)
        if trained_length is not None:
            kinds = self.nested_rope_parameter_keys(self.rope_parameters)
            for rope in [self.rope_parameters[kind] for kind in kinds] or [self.rope_parameters]:
                if rope is not None:
                    rope.setdefault("original_max_position_embeddings", trained_length)
        return super().convert_rope_params_to_dict(**kwargs)

    def _take_other_spellings(self, kwargs: dict[str, Any]) -> None:
        """Read fields given by a name of `attribute_map`; a field given twice must have the same value."""
        defaults = {field.name: field.default for field in fields(self)}
        for alias in [name for name in kwargs if name in self.attribute_map]:
            name, value = self.attribute_map[alias], kwargs.pop(alias)
            if getattr(self, name) not in (defaults[name], value):
                raise ValueError(
                    f"{alias}={value} contradicts {name}={getattr(self, name)}: they are one field."
                )
            setattr(self, name, value)

    def _tensor_parallel_plan(self) -> dict[str, str]:
        """The class's plan for the parts that this config has and that a slice of their width can compute."""
        feed_forwards = set(self.mlp_layer_types)
        shared = any(layer_view(self, i).shared_expert_intermediate_size for i in self.sparse_layers)
        absent = {
            "_norm": self.qk_norm != "head",
            "mlp.gate_proj": self.feed_forward_type == "mlp" or "dense" not in feed_forwards,
            "mlp.up_proj": "dense" not in feed_forwards,
            "mlp.down_proj": "dense" not in feed_forwards,
            "mlp.experts": "sparse" not in feed_forwards
            or self.expert_bias,  # each slice would add the whole bias
            "experts.gate_up_proj": self.feed_forward_type == "mlp",
            "experts.up_proj": self.feed_forward_type == "gated",
            "shared_expert": not shared,
            "shared_expert.gate_proj": self.feed_forward_type == "mlp",
        }
        gone = [part for part, is_absent in absent.items() if is_absent]
        plan = {k: v for k, v in type(self).base_model_tp_plan.items() if not any(part in k for part in gone)}
        if self.qk_norm == "full":  # the norm needs all heads
            plan |= {f"layers.*.self_attn.{name}_proj": "colwise_gather_output" for name in "qkv"}
            plan["layers.*.self_attn.o_proj"] = "rowwise_split_input"
        return plan

    @classmethod
    def _known(cls) -> set[str]:
        return {field.name for field in fields(cls)} | set(cls.attribute_map) | _LIBRARY_KWARGS | _ROPE_KWARGS

    @classmethod
    def unknown_fields(cls, values: Mapping[str, Any]) -> list[str]:
        """The names among `values` that are no field and nothing that transformers understands."""
        accepted = cls._known() | set(GenerationConfig._get_default_generation_params())
        return sorted(name for name in values if name not in accepted and not name.startswith("_"))

    @classmethod
    def refuse_unknown(cls, values: Mapping[str, Any]) -> None:
        """Raise a ValueError that names each unknown field, its value and the nearest field there is."""
        hints = []
        for name in cls.unknown_fields(values):
            near = difflib.get_close_matches(name, cls._known(), n=1, cutoff=0.0)
            hints.append(f"{name}={values[name]!r} (nearest field: {near[0]})")
        if hints:
            raise ValueError(f"MoebaConfig has no field {'; '.join(hints)}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers. Attributes that someone added to a saved config are kept, with a warning.

        Only the constructor refuses them: what `save_pretrained` wrote must load again.
        """
        extra = {name: config_dict[name] for name in cls.unknown_fields(config_dict)}
        known = {name: value for name, value in config_dict.items() if name not in extra}
        result = super().from_dict(known, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        for name, value in extra.items():
            logger.warning(
                f"config.json has {name}={value!r}, which MoebaConfig does not know: it changes nothing."
            )
            setattr(config, name, value)
        return result

    def validate_architecture(self) -> None:
        """Refuse fields that contradict each other (`@strict` runs this at construction)."""
        if self.is_heterogeneous:
            super().validate_architecture()
            return
        for problem in self._contradictions():
            raise ValueError(f"MoebaConfig: {problem}.")

    def _contradictions(self):
        """Yield one sentence a contradiction."""
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "max_position_embeddings",
                     "moe_intermediate_size", "n_group", "topk_group"):  # fmt: skip
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        for name in ("num_experts", "shared_expert_intermediate_size", "num_hidden_layers", "norm_eps",
                     "position_offset", "norm_topk_eps", "router_aux_loss_coef", "router_z_loss_coef",
                     "initializer_range"):  # fmt: skip
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name)} must not be negative"
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            yield (
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        yield from self._attention_contradictions()
        yield from self._rope_contradictions()
        yield from self._expert_contradictions()
        if self.hidden_act not in ACT2FN:
            near = difflib.get_close_matches(self.hidden_act, ACT2FN, n=1, cutoff=0.0)[0]
            yield f"hidden_act='{self.hidden_act}' is no activation of transformers (nearest: '{near}')"
        for name in ("attention_dropout", "hidden_dropout", "embedding_dropout", "classifier_dropout",
                     "router_jitter_noise"):  # fmt: skip
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 0 and below 1"
        if "layernorm" not in self.norm_type and not self.norm_bias:
            yield f"norm_bias=False is about layer norms, but norm_type='{self.norm_type}'"
        if self.position_offset and self.position_embedding_type != "learned":
            yield (
                f"position_offset={self.position_offset} needs position_embedding_type='learned', "
                f"not '{self.position_embedding_type}'"
            )

    def _attention_contradictions(self):
        allowed = {"full_attention", "sliding_attention"}
        unknown = sorted(set(self.layer_types) - allowed)
        if unknown:
            yield f"layer_types has {unknown}; Moeba knows {sorted(allowed)}"
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            yield "layer_types has 'sliding_attention' but sliding_window=None"
        if self.sliding_window is not None and self.sliding_window < 1:
            yield f"sliding_window={self.sliding_window} must be at least 1"
        if self.attn_logit_softcapping is not None and self.attn_logit_softcapping <= 0:
            yield f"attn_logit_softcapping={self.attn_logit_softcapping} must be positive, or None"
        if self.final_logit_softcapping is not None and self.final_logit_softcapping <= 0:
            yield f"final_logit_softcapping={self.final_logit_softcapping} must be positive, or None"

    def _rope_contradictions(self):
        if self.position_embedding_type != "rope":
            return
        kinds = self.nested_rope_parameter_keys(self.rope_parameters)
        for kind in sorted(set(self.layer_types) - set(kinds)):
            if kinds or any(isinstance(value, dict) for value in self.rope_parameters.values()):
                yield f"rope_parameters={self.rope_parameters} is given per layer type, but not for '{kind}'"
        for rope in [self.rope_parameters[kind] for kind in kinds] or [self.rope_parameters]:
            if rope is None:
                continue
            if rope["rope_type"] != "default" and rope["rope_type"] not in ROPE_INIT_FUNCTIONS:
                yield f"rope_type='{rope['rope_type']}' is none of {['default', *ROPE_INIT_FUNCTIONS]}"
            factor = rope.get("partial_rotary_factor", 1.0)
            if not 0 < factor <= 1 or int(self.head_dim * factor) < 2 or int(self.head_dim * factor) % 2:
                yield f"partial_rotary_factor={factor} of head_dim={self.head_dim} is no even width"

    def _expert_contradictions(self):
        sparse = set(self.mlp_layer_types) - {"dense"}
        if sparse - {"sparse"}:
            yield f"mlp_layer_types has {sorted(sparse - {'sparse'})}; only 'dense' and 'sparse' exist"
        if len(self.mlp_layer_types) != self.num_hidden_layers:
            yield (
                f"mlp_layer_types has {len(self.mlp_layer_types)} entries for "
                f"num_hidden_layers={self.num_hidden_layers}"
            )
        if sparse and not self.num_experts:
            yield "mlp_layer_types has 'sparse' but num_experts=0"
        if self.num_experts and not sparse and self.num_hidden_layers:
            yield f"num_experts={self.num_experts} but every entry of mlp_layer_types is 'dense'"
        if self.shared_expert_gate and not self.shared_expert_intermediate_size:
            yield "shared_expert_gate=True but shared_expert_intermediate_size=0"
        if not self.num_experts:  # the other expert and router fields are idle then
            return
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            yield (
                f"num_experts_per_tok={self.num_experts_per_tok} must be between 1 and "
                f"num_experts={self.num_experts}"
            )
        if self.num_experts % self.n_group or self.topk_group > self.n_group:
            yield (
                f"n_group={self.n_group} must divide num_experts={self.num_experts} and be at least "
                f"topk_group={self.topk_group}"
            )
        elif self.num_experts // self.n_group * self.topk_group < self.num_experts_per_tok:
            yield (
                f"topk_group={self.topk_group} of n_group={self.n_group} groups hold fewer than "
                f"num_experts_per_tok={self.num_experts_per_tok} experts"
            )
        elif self.n_group > 1 and self.num_experts // self.n_group < 2:
            yield f"n_group={self.n_group} leaves one expert a group, but a group is scored by its best two"

    @property
    def rope_is_per_layer_type(self) -> bool:
        """Whether `rope_parameters` holds one dict for each layer type instead of one for all."""
        return bool(self.nested_rope_parameter_keys(self.rope_parameters or {}))

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


__all__ = ["MoebaConfig"]
