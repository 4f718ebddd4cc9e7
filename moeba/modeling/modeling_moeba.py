"""The Moeba model: tokens -> embeddings -> blocks of attention and feed-forward -> norm -> head -> logits.

`MoebaModel` is the transformer; the heads below put a task on top. Every choice of part is made by the config
and looked up in the tables of the sibling files.
"""

from typing import Any

import torch
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig
from ..configuration.model_facts import longrope_switch
from ..library.contract import require_contract
from ..library.upstream import (
    ALL_ATTENTION_FUNCTIONS,
    ALL_EXPERTS_FUNCTIONS,
    CACHE,
    Cache,
    DynamicCache,
    GenerationMixin,
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    MoeModelOutputWithPast,
    OutputRecorder,
    PreTrainedModel,
    attention_of,
    cache_of,
    can_return_tuple,
    capture_outputs,
    init,
    is_continuous_batch,
    logging,
    merge_with_config_defaults,
    refuse_unread,
    shift_smoothed_labels,
    slice_logits_to_keep,
    takes_cache,
)
from .attention import MoebaAttention, build_masks
from .balancing import RouterLosses, share_of_tokens, token_mask_from
from .blocks import BLOCKS, MoebaDecoderLayer
from .built_fields import built_with, refuse_changed
from .experts import Experts
from .folders import MoebaFolders
from .head_losses import MoebaCausalLMOutputWithPast, RouterLossHead, with_router_losses
from .norms import MoebaUnitOffsetLayerNorm, MoebaUnitOffsetRMSNorm, build_norm
from .position_biases import POSITION_BIASES, MoebaAlibi, add_position_bias, static_cache_masks
from .positions import EMBEDDED_POSITIONS, MoebaSinusoidalPositions, build_rotary, cached_tokens
from .router import MoebaRouter

logger = logging.get_logger(__name__)

# Config fields, when set, that scaled_dot_product_attention has no argument for.
BEYOND_SDPA = ("attn_logit_softcapping", "attention_sink_layer_types")

# Attention implementations that add a mask of numbers to the scores; None chooses one of them.
TAKES_BIASES = (None, "eager", "paged|eager", "sdpa")


def _exists(attn_implementation: str | None) -> bool:
    """Whether transformers has it, or would fetch it: a kernel from the Hub has a `/` in its name."""
    return attn_implementation in ALL_ATTENTION_FUNCTIONS.valid_keys() or "/" in (attn_implementation or "")


# No postponed annotations in this file: transformers reads the config class off the `config` annotation.
class MoebaPreTrainedModel(MoebaFolders, PreTrainedModel):
    """What all Moeba models share: initialisation, saving, loading and what transformers asks of them."""

    config: MoebaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = [block.__name__ for block in BLOCKS.values()]
    _skip_keys_device_placement = [CACHE]
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "router_logits": OutputRecorder(MoebaRouter, index=0),
        "hidden_states": MoebaDecoderLayer,
        "attentions": MoebaAttention,
    }

    def __init__(self, config: MoebaConfig, *args: Any, **kwargs: Any) -> None:
        if isinstance(config, MoebaConfig):  # whose fields may have been set since it was made
            config.settle()
        super().__init__(config, *args, **kwargs)
        # Of all that the class can hold, what this model does hold.
        self._no_split_modules = [BLOCKS[config.block_order].__name__]
        self._keep_in_fp32_modules_strict = []
        if config.sparse_layers and config.router_selection_bias:
            self._keep_in_fp32_modules_strict.append("e_score_correction_bias")
        if config.sparse_layers and config.router_param_dtype == "float32":
            self._keep_in_fp32_modules_strict.append("mlp.gate.weight")
        if config.attention_score_dtype == "float32" and config.attention_sink_layer_types:
            self._keep_in_fp32_modules_strict.append("sinks")

    # The library decides these two by reading the source of this file; here the parts have files of their
    # own.
    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *args: Any, **kwargs: Any
    ) -> str:
        """Run the plain attention where another one would silently leave a part out; refuse one that does not exist.

        Under `sdpa` only the layers that it cannot compute run the plain attention, see `MoebaAttention.mix`.
        """
        beyond_sdpa = next((name for name in BEYOND_SDPA if getattr(self.config, name)), None)
        biased = self.config.position_embedding_type in POSITION_BIASES
        if beyond_sdpa and attn_implementation in ("sdpa", "paged|sdpa"):
            self._say_cannot(attn_implementation, beyond_sdpa, "layers that have it run eager attention")
            if attn_implementation == "paged|sdpa":
                attn_implementation = "paged|eager"
        elif biased and _exists(attn_implementation) and attn_implementation not in TAKES_BIASES:
            self._say_cannot(attn_implementation, "position_embedding_type", "using eager attention")
            attn_implementation = "eager"
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def _say_cannot(self, attn_implementation: str, field: str, instead: str) -> None:
        logger.warning_once(
            f"{attn_implementation} cannot do {field}={getattr(self.config, field)!r}: {instead}."
        )

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Where none is named and no accelerator is at hand, moeba's kernels, if the package has registered them."""
        fast = "moeba" in ALL_EXPERTS_FUNCTIONS and not torch.accelerator.is_available()
        return super().get_correct_experts_implementation(
            "moeba" if requested_experts is None and fast else requested_experts
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Experts):
            module.init_weights(std)
        elif isinstance(module, MoebaRouter):
            init.normal_(module.weight, mean=0.0, std=std)
            for vector in (module.bias, module.e_score_correction_bias):
                if vector is not None:
                    init.zeros_(vector)
        elif isinstance(module, (MoebaUnitOffsetRMSNorm, MoebaUnitOffsetLayerNorm)):
            init.zeros_(module.weight)
        elif isinstance(module, (MoebaSinusoidalPositions, MoebaAlibi)):
            module.init_buffers()
        elif isinstance(module, MoebaAttention) and module.has_sinks:
            init.normal_(module.sinks, mean=0.0, std=std)


class MoebaModel(MoebaPreTrainedModel):
    """The transformer without a head: token ids in, one vector a token out."""

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__(config)
        self.padding_idx = None if config.train_padding_embedding else config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, self.padding_idx)
        narrow = config.embedding_size != config.hidden_size
        self.project_in, self.project_out = (
            nn.Linear(*widths, bias=False) if narrow else nn.Identity()
            for widths in (
                (config.embedding_size, config.hidden_size),
                (config.hidden_size, config.embedding_size),
            )
        )
        self.embed_norm = build_norm(config) if config.embedding_norm else nn.Identity()
        positions = config.position_embedding_type
        embedded, biased = EMBEDDED_POSITIONS.get(positions), POSITION_BIASES.get(positions)
        self.embed_positions = embedded(config) if embedded else None
        self.rotary_emb = build_rotary(config) if positions == "rope" else None
        self.position_bias = biased(config) if biased else None
        self.dropout = nn.Dropout(config.embedding_dropout)
        block = BLOCKS[config.block_order]
        self.layers = nn.ModuleList([block(config, i) for i in range(config.num_hidden_layers)])
        self.norm = build_norm(config) if config.final_norm else nn.Identity()
        self.gradient_checkpointing = False
        self._built_with = built_with(config)
        self.post_init()

    def _embed(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Scale the token embeddings and add positions, `[batch, tokens, hidden]`."""
        hidden_states = inputs_embeds
        if self.config.embedding_multiplier != 1.0:
            multiplier: float | torch.Tensor = self.config.embedding_multiplier
            if self.config.round_embedding_multiplier:
                multiplier = torch.tensor(multiplier, dtype=hidden_states.dtype, device=hidden_states.device)
            hidden_states = hidden_states * multiplier
        hidden_states = self.project_in(hidden_states)
        if self.embed_positions is not None:
            hidden_states = hidden_states + self.embed_positions(hidden_states, position_ids)
        return self.dropout(self.embed_norm(hidden_states))

    def _positions(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        """Places of the new tokens, `[1, tokens]`, or `[batch, tokens]` where only real tokens count."""
        tokens = inputs_embeds.shape[1]
        counts = self.config.positions_from_attention_mask
        if counts and isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            real = attention_mask.long()
            return (real.cumsum(dim=1) * real - 1)[:, -tokens:]
        new = torch.arange(tokens, device=inputs_embeds.device)
        return (new + cached_tokens(past_key_values)).unsqueeze(0)

    def _without_continuous_batching(self) -> str | None:
        """What the config has that knows nothing of texts packed into one row, or of pages of keys and values."""
        if self.config.position_embedding_type in POSITION_BIASES:
            return f"position_embedding_type='{self.config.position_embedding_type}'"
        return "attention_type='latent'" if self.config.attention_type == "latent" else None

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        router_losses: RouterLosses | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """
        Args:
            input_ids: `[batch, tokens]`, or `inputs_embeds` `[batch, tokens, hidden]`.
            attention_mask: `[batch, past + tokens]` (1: real, 0: padding), a ready 4-D mask, or one for each
                layer type.
            router_losses: filled with what the sparse layers contribute.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if not torch.compiler.is_compiling():
            refuse_changed(self.config, self._built_with)
        refuse_unread(kwargs, self.config, type(self).__name__)
        if is_continuous_batch(kwargs) and (part := self._without_continuous_batching()):
            raise ValueError(f"Continuous batching cannot run {part}: use generate().")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None and self.config.is_causal:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, attention_mask, past_key_values)

        hidden_states = self._embed(inputs_embeds, position_ids)
        if isinstance(attention_mask, dict):
            masks = attention_mask
        else:
            masks = build_masks(
                self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        if self.position_bias is not None:
            biased = {
                kind: add_position_bias(
                    self.position_bias,
                    mask,
                    hidden_states,
                    past_key_values,
                    attention_mask,
                    layer=self.config.layer_types.index(kind),
                )
                for kind, mask in masks.items()
                if kind in self.config.layer_types
            }
            is_eager = attention_of(self.config) == "eager"  # kernels take no mask of another dtype
            dtype = hidden_states.dtype
            masks = {kind: mask if is_eager else mask.to(dtype) for kind, mask in biased.items()}
        rotations = None if self.rotary_emb is None else self.rotary_emb(hidden_states, position_ids)
        if router_losses is not None:
            router_losses.token_mask = token_mask_from(attention_mask, inputs_embeds.shape[:2])

        # As in stock models: fewer while `generate(assistant_early_exit=n)` drafts with the first n.
        layers = self.layers[: self.config.num_hidden_layers]
        for layer, layer_type in zip(layers, self.config.layer_types, strict=False):
            passed = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_ids=position_ids,
                use_cache=use_cache,
                position_embeddings=rotations.get(layer_type) if isinstance(rotations, dict) else rotations,
                router_losses=router_losses,
                **{CACHE: past_key_values},
                **kwargs,
            )
            # In place of another stage's layers, engines put their own, which pass on a tensor alone.
            hidden_states, contribution = passed if isinstance(passed, tuple) else (passed, None)
            if router_losses is not None and contribution is not None:
                router_losses.layers.append(contribution)

        # Where the embedding table is narrower than the stream, back to its width.
        hidden_states = self.project_out(self.norm(hidden_states))
        cache: dict[str, Any] = {CACHE: past_key_values}
        return MoeModelOutputWithPast(last_hidden_state=hidden_states, **cache)


class MoebaForCausalLM(RouterLossHead, MoebaPreTrainedModel, GenerationMixin):
    """The model with a language-modeling head: a score for every token of the vocabulary at every place."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]  # as in stock models
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: MoebaConfig) -> None:
        if not config.is_causal:
            raise ValueError(
                "is_causal=False sees the tokens to be predicted: MoebaForCausalLM needs is_causal=True."
            )
        super().__init__(config)
        self.model = MoebaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @takes_cache
    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,  # named, as the library looks for it in this signature
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers, except that keys turned by other frequencies than the next ones are dropped."""
        switch = longrope_switch(self.config) if self.config.longrope_restarts_cache else None
        if switch is not None and cached_tokens(past_key_values) <= switch < input_ids.shape[1]:
            past_key_values, next_sequence_length = None, None
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **{CACHE: past_key_values},
            **kwargs,
        )

    def create_masks_for_generate(self, **tensors: Any) -> Any:
        """Masks over a static cache, which the library asks for."""
        return static_cache_masks(**tensors)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Project, scale and cap: `[..., hidden] -> [..., vocab]`."""
        logits = self.lm_head(hidden_states)
        if (scale := self.config.logit_scale) != 1.0:
            logits = logits * scale if self.config.logit_scale_operation == "multiply" else logits / scale
        if self.config.final_logit_softcapping is not None:
            cap = self.config.final_logit_softcapping
            logits = torch.tanh(logits / cap) * cap
        return logits

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoebaCausalLMOutputWithPast:
        """
        Args:
            labels: `[batch, tokens]`, the input ids themselves (shifted here); -100 is ignored.
            output_router_logits: return the logits of each router, `[batch * tokens, experts]` a sparse
                layer.
            logits_to_keep: compute logits for the last n places only (0: all), or for the places of a tensor.
            kwargs: `num_items_in_batch` (from Trainer): the tokens of the whole optimiser step.

        Returns:
            `loss` is the cross-entropy and, where the config's `router_loss` says so (by default in training
            only), `router_aux_loss_coef * aux_loss` and the z-loss, weighted by this batch's share of
            `num_items_in_batch`. `aux_loss` and `z_loss` are unweighted.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        output_router_logits = bool(output_router_logits)
        has_labels = labels is not None or kwargs.get("shift_labels") is not None
        losses = self.wanted_router_losses(has_labels, output_router_logits)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            router_losses=losses,
            **{CACHE: past_key_values},
            **kwargs,
        )
        logits = self.compute_logits(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))

        loss = None
        if has_labels:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        aux_loss = z_loss = None
        if losses is not None and losses.layers:
            aux_loss, z_loss = losses.of_model()
            share = share_of_tokens(labels, kwargs.get("shift_labels"), kwargs.get("num_items_in_batch"))
            loss = self.with_router_losses(loss, aux_loss, z_loss, output_router_logits, share)

        return MoebaCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            **{CACHE: cache_of(outputs)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            z_loss=z_loss if self.config.router_z_loss_coef else None,
        )


class _GenericHead(RouterLossHead):
    """What the heads below share."""

    # The generic losses are means over the micro-batch, so Trainer has to divide by the number of
    # accumulation steps.
    accepts_loss_kwargs = False


# The generic heads build their model through AutoModel, which remote code cannot: each __init__ builds it
# directly.
class MoebaForSequenceClassification(_GenericHead, GenericForSequenceClassification, MoebaPreTrainedModel):
    """One label a sequence, read at its last token."""

    def __init__(self, config: MoebaConfig) -> None:
        MoebaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = MoebaModel(config)
        self.score = nn.Linear(config.embedding_size, self.num_labels, bias=False)
        self.post_init()

    forward = with_router_losses(GenericForSequenceClassification.forward)


class MoebaForTokenClassification(_GenericHead, GenericForTokenClassification, MoebaPreTrainedModel):
    """One label a token."""

    def __init__(self, config: MoebaConfig) -> None:
        MoebaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = MoebaModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.embedding_size, self.num_labels)
        self.post_init()

    forward = with_router_losses(GenericForTokenClassification.forward)


class MoebaForQuestionAnswering(_GenericHead, GenericForQuestionAnswering, MoebaPreTrainedModel):
    """Start and end of an answer inside the text."""

    def __init__(self, config: MoebaConfig) -> None:
        MoebaPreTrainedModel.__init__(self, config)
        self.model = MoebaModel(config)
        self.qa_outputs = nn.Linear(config.embedding_size, 2)
        self.post_init()

    forward = with_router_losses(GenericForQuestionAnswering.forward)


shift_smoothed_labels(MoebaConfig.model_type, MoebaForCausalLM.__name__)
require_contract(
    (MoebaModel.forward, MoebaForCausalLM.forward), MoebaForCausalLM.prepare_inputs_for_generation
)

__all__ = [
    "MoebaForCausalLM",
    "MoebaForQuestionAnswering",
    "MoebaForSequenceClassification",
    "MoebaForTokenClassification",
    "MoebaModel",
    "MoebaPreTrainedModel",
]
