"""MoebaConfig: which part each dimension of the transformer uses, and how large it is.

Names are those of Llama, Qwen and Mixtral in transformers wherever they have one. Each architectural choice
is a `Literal` that a table in `moeba/modeling` turns into a small class.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal

from ..library.peft_tables import fill_peft_tables
from ..library.upstream import CACHE, PreTrainedConfig, generation_fields, logging, strict
from ..library.window import require_transformers
from .contradictions import contradictions
from .idle_fields import said_in_vain
from .messages import LISTED, listing, nearest, short
from .model_facts import count_params, flops_per_token, kv_cache_bytes_per_token, layer_view, rope_of
from .overrides import ROPE_NAMES, overridden
from .parallel_plans import EXPERT_PARALLEL, PIPELINE_PARALLEL, TENSOR_PARALLEL, tensor_parallel_plan
from .ranges import dtype_problems, out_of_range
from .rope_rules import two_ropes
from .validation import with_value_errors

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


# No postponed annotations in this file: `@strict` checks each field against what its annotation evaluates to.
@with_value_errors
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
        embedding_size (`int`, *optional*): width of the embedding table, default `hidden_size`; another width
            is projected in and out (OPT-350m).
        train_padding_embedding (`bool`): the embedding of `pad_token_id` learns like any other (GPT-2).
        embedding_norm (`bool`): normalise the embedded tokens (BLOOM).
        embedding_multiplier (`float`): factor on the token embeddings; with `round_embedding_multiplier` it is
            first rounded to the model's dtype (Gemma).
        position_embedding_type (`str`): see `modeling/positions.py` and `modeling/position_biases.py`.
        rope_parameters (`dict`, *optional*, no attribute without rope): any rope type of transformers, with
            `partial_rotary_factor`; one dict, or one for each kind in `layer_types`. `mscale_all_dim` sharpens latent
            attention under yarn.
        query_growth_beta (`float`, *optional*): queries grow by `1 + beta * log(1 + position // original)`, with
            rope's `original_max_position_embeddings` (Llama 4).
        longrope_restarts_cache (`bool`): under rope type `longrope`, `generate()` computes the cache anew when the
            text grows past the original context, where the frequencies change (Phi-3). longrope_factors (`str`):
            they change `by_length`, or `short` factors always apply (Phi-3.5-MoE).
        rotary_layers (`list[bool]`, *optional*): which layers rotate; default all (with `rope`).
        rotary_precision (`str`): what half precision rounds: angles' cosines and sines, and the rotation (`model`),
            the former only (`float32_product`, Cohere), or neither (`float32`, OLMo 2).
        rope_interleave (`bool`): latent attention rotates neighbouring entries together (DeepSeek-V3), not halves.
        position_offset (`int`): added to each position before a learned or sinusoidal table is read.
        positions_from_attention_mask (`bool`): where no `position_ids` are given, count real tokens only (OPT).
        alibi_bias_max, alibi_multiplier (`float`): the slopes of `alibi`, and a factor on its bias. alibi_dtype
            (`str`): `model`, `bfloat16` (slopes and bias are rounded to it first) or `float32`.
        relative_attention_num_buckets, relative_attention_max_distance (`int`): the table of `relative`.
        attention_type (`str`): `grouped_query` or `latent` (`modeling/latent_attention.py`), which has
            `q_lora_rank` (`int`, *optional*: None for a full query projection), `kv_lora_rank` and
            `qk_rope_head_dim` (the part of `head_dim` that rotates).
        attention_bias (`bool`): bias of the query, key and value projections.
        attention_output_bias (`bool`, *optional*): bias of the output projection; default: as
            `attention_bias`.
        clip_qkv (`float`, *optional*): queries, keys and values are clamped to this size.
        qk_norm (`str`): `none`, `head` (over each head, one weight for all), `per_head` (a weight for each) or
            `full` (over all heads together); `qk_norm_after_rope` places it. `qk_norm_type`, `qk_norm_eps` and
            `qk_norm_bias` default to the block's; latent attention's inner norms use them too.
        v_head_dim (`int`, *optional*): width of a value head; default `head_dim`.
        attention_multiplier (`float`, *optional*): factor on query-key products; default `head_dim ** -0.5`.
            With `scale_attn_by_inverse_layer_idx` it is divided by the layer's number, from 1 on (GPT-2).
        attention_score_dtype (`str`): `model` or `float32` for the products of queries and keys (eager attention).
            Sinks stay in float32 with it. `attention_softmax_dtype` is that of their softmax, `model` in any layer with
            sinks.
        attention_value_multiplier (`float`): factor on the values.
        attention_sink_layer_types (`list[str]`, *optional*): kinds of layers whose heads may attend to nothing.
            `attention_sink_form` is how: by one more entry of the softmax (`softmax_entry`, GPT-OSS), or by
            multiplying the mixed values by what that leaves (`output_share`, Granite), which rounds otherwise.
        attention_output_gate (`str`): `none`, or what turns a projection of the input into a factor on the
            mixed values.
        attn_logit_softcapping (`float`, *optional*): scores become `c * tanh(scores / c)`.
        layer_types (`list[str]`, *optional*): `full_attention` or `sliding_attention` for each layer;
            default: sliding everywhere when `sliding_window` is given, else full.
        sliding_window (`int`, *optional*): tokens that a sliding layer sees, itself included.
        is_causal (`bool`): False lets every token see the whole sequence (for encoders; no causal head then).
        feed_forward_type (`str`): `gated` (down(act(gate) * up)), `mlp` (down(act(up))) or `clamped_gated`,
            GPT-OSS's, with `swiglu_alpha` and `swiglu_limit`.
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
        shared_expert_combination (`str`): the `sum` or the `average` of routed and shared answers.
        moe_output_norm (`bool`): normalise what a sparse feed-forward returns (A.X-K1).
        router_type (`str`): `topk`, `topk_softmax`, `topk_sigmoid` or `sparsemixer` (with `sparsemixer_eps`), see
            `modeling/router.py`; the fields below belong to `topk`.
        scoring_func (`str`): `softmax` or `sigmoid` turns router logits into scores.
        norm_topk_prob (`bool`): renormalise the chosen scores to sum to 1 (`topk_sigmoid` too).
        norm_topk_eps, norm_topk_min (`float`): added to that sum; the least that it counts as.
        topk_sorted (`bool`): sum the chosen scores best first, or as top-k leaves them; it changes rounding only.
        n_group, topk_group (`int`): experts are chosen from the `topk_group` best of `n_group` groups, scored
            by `group_scoring`; the others are `excluded`, or score `zero` (`group_mask`; Mistral 4).
        router_selection_bias (`bool`): a buffer added to the scores for choosing only (loss-free balancing).
        routed_scaling_factor (`float`): factor on the routed experts' weights.
        router_bias (`bool`): bias of the router's projection.
        router_logit_softcapping (`float`, *optional*): router logits become `c * tanh(logits / c)`.
        router_param_dtype, router_matmul_dtype, router_score_dtype, router_weight_dtype (`str`): `model` or
            `float32` for the router's parameter, product, scores and final weights; they decide which experts
            win in bf16.
        router_jitter_noise (`float`): in training, the layer input is multiplied by uniform(1 - x, 1 + x),
            `router_jitter_draws` (`int`) times (Phi-3.5-MoE: 2).
        router_loss (`str`): when router losses join `.loss` (`modeling/balancing.py`): in `training`, and only there;
            `with_router_logits`, as in transformers' own models, in evaluation too; or never (`none`).
        router_aux_loss_coef, router_z_loss_coef (`float`): their factors; the latter with `training` only.
        lm_head_bias (`bool`), logit_scale (`float`, a factor), logits_scaling (`float`, a divisor),
            final_logit_softcapping (`float`, *optional*): the head.
        native_fields (`dict`, *optional*): by family, what the config.json that the model was converted from says
            beside its function; nothing here reads it, and an export to that family says it again.

    Raises:
        ValueError: a field that does not exist (the nearest name is suggested), one out of range or without anything
            to act on (`idle_fields.py`), or fields that contradict each other.
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
    base_model_ep_plan = EXPERT_PARALLEL
    base_model_pp_plan = PIPELINE_PARALLEL

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
        "pre_norm",
        "pre_norm_normed_residual",
        "post_norm",
        "sandwich_norm",
        "output_norm",
        "parallel",
        "parallel_stream_first",
        "parallel_two_norms",
    ] = "pre_norm"
    residual_multiplier: float | int = 1.0
    final_norm: bool = True
    norm_type: Literal[
        "rmsnorm",
        "rmsnorm_float32",
        "rmsnorm_unit_offset",
        "rmsnorm_nonparametric",
        "layernorm",
        "layernorm_float32",
        "layernorm_unit_offset",
        "layernorm_nonparametric",
    ] = "rmsnorm"
    norm_eps: float = 1e-6
    norm_bias: bool = True

    # Embeddings and positions
    tie_word_embeddings: bool = False
    embedding_size: int | None = None
    embedding_norm: bool = False
    train_padding_embedding: bool = False
    embedding_multiplier: float | int = 1.0
    round_embedding_multiplier: bool = False
    position_embedding_type: Literal[
        "rope", "learned", "sinusoidal", "sinusoidal_fairseq", "alibi", "relative", "none"
    ] = "rope"
    rope_parameters: dict | None = None
    longrope_restarts_cache: bool = False
    longrope_factors: Literal["by_length", "short"] = "by_length"
    rotary_layers: list[bool] | None = None
    rotary_precision: Literal["model", "float32_product", "float32"] = "model"
    query_growth_beta: float | int | None = None
    rope_interleave: bool = False
    position_offset: int = 0
    positions_from_attention_mask: bool = False
    alibi_bias_max: float | int = 8
    alibi_multiplier: float | int = 1.0
    alibi_dtype: Literal["model", "bfloat16", "float32"] = "model"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128

    # Attention
    attention_type: Literal["grouped_query", "latent"] = "grouped_query"
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    clip_qkv: float | int | None = None
    qk_norm: Literal["none", "head", "per_head", "full"] = "none"
    qk_norm_type: str | None = None
    qk_norm_eps: float | None = None
    qk_norm_bias: bool | None = None
    qk_norm_after_rope: bool = False
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    attention_multiplier: float | int | None = None
    scale_attn_by_inverse_layer_idx: bool = False
    attention_score_dtype: Literal["model", "float32"] = "model"
    attention_softmax_dtype: Literal["model", "float32"] = "float32"
    attention_value_multiplier: float | int = 1.0
    attention_sink_layer_types: list[str] | None = None
    attention_sink_form: Literal["softmax_entry", "output_share"] = "softmax_entry"
    attention_output_gate: Literal["none", "sigmoid", "softplus", "softplus_per_head"] = "none"
    attn_logit_softcapping: float | int | None = None
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    is_causal: bool = True

    # Feed-forward
    feed_forward_type: Literal["gated", "clamped_gated", "mlp"] = "gated"
    hidden_act: str = "silu"
    swiglu_alpha: float | int = 1.702
    swiglu_limit: float | int | None = 7.0
    mlp_bias: bool = False

    # Experts
    num_experts: int = 0
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None
    mlp_layer_types: list[str] | None = None
    expert_bias: bool = False
    shared_expert_intermediate_size: int = 0
    shared_expert_gate: bool = False
    shared_expert_combination: Literal["sum", "average"] = "sum"
    moe_output_norm: bool = False

    # Router
    router_type: Literal["topk", "topk_softmax", "topk_sigmoid", "sparsemixer"] = "topk"
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: bool = True
    norm_topk_eps: float = 0.0
    norm_topk_min: float = 0.0
    topk_sorted: bool = True
    n_group: int = 1
    topk_group: int = 1
    group_mask: Literal["excluded", "zero"] = "excluded"
    group_scoring: Literal["top2_sum", "max"] = "top2_sum"
    router_selection_bias: bool = False
    routed_scaling_factor: float | int = 1.0
    router_bias: bool = False
    router_logit_softcapping: float | int | None = None
    router_param_dtype: Literal["model", "float32"] = "model"
    router_matmul_dtype: Literal["model", "float32"] = "model"
    router_score_dtype: Literal["model", "float32"] = "float32"
    router_weight_dtype: Literal["model", "float32"] = "model"
    sparsemixer_eps: float = 0.01
    router_jitter_noise: float | int = 0.0
    router_jitter_draws: int = 1
    router_loss: Literal["training", "with_router_logits", "none"] = "training"
    router_aux_loss_coef: float | int = 0.001
    router_z_loss_coef: float | int = 0.0
    output_router_logits: bool = False

    # Head
    lm_head_bias: bool = False
    logit_scale: float | int = 1.0
    logits_scaling: float | int = 1.0
    final_logit_softcapping: float | int | None = None

    # Training and generation
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    native_fields: dict | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # `MoebaConfig(**config.to_dict())` says what a file says.
        from_file = kwargs.pop(_FROM_FILE, False) or "model_type" in kwargs
        self.refuse_unknown(kwargs)
        self._take_other_spellings(kwargs)
        self._refuse(dtype_problems(self.dtype, kwargs.get("torch_dtype")))
        self._refuse(out_of_range(vars(self) | kwargs))  # before lists as long as a number says are made
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
        if self.v_head_dim is None:
            self.v_head_dim = self.head_dim
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        for name, default in (("type", self.norm_type), ("eps", self.norm_eps), ("bias", self.norm_bias)):
            if getattr(self, f"qk_norm_{name}") is None:
                setattr(self, f"qk_norm_{name}", default)
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        if self.rotary_layers is None:
            self.rotary_layers = [self.position_embedding_type == "rope"] * self.num_hidden_layers
        if self.mlp_layer_types is None:
            self.mlp_layer_types = ["sparse" if self.num_experts else "dense"] * self.num_hidden_layers
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            del self.rope_parameters
        self.base_model_tp_plan = tensor_parallel_plan(self)
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
        """Read fields given by a name of `attribute_map`; a field given twice must have the same value."""
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
            {field.name for field in fields(cls)} | set(cls.attribute_map) | _LIBRARY_KWARGS | set(ROPE_NAMES)
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
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; fields among `kwargs` are said anew and validated with all others.

        Only what somebody says is refused where nothing would read it. What `save_pretrained` wrote must load again:
        attributes that someone added to a saved config are kept, with a warning, and so is a field of it that has
        nothing to act on.

        Raises:
            ValueError: a field out of range, fields that contradict each other, or one of `kwargs` without effect.
        """
        names = {field.name for field in fields(cls)} - {"dtype"} | set(cls.attribute_map) | set(ROPE_NAMES)
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
        said = {cls.attribute_map.get(name, name): value for name, value in given.items()}
        values = overridden(config_dict, said, cls.attribute_map)
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
        self.base_model_tp_plan = tensor_parallel_plan(self)

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


# Tools take a config that has the attribute for one that rotates: where nothing does, it is absent.
del MoebaConfig.rope_parameters

__all__ = ["MoebaConfig"]
