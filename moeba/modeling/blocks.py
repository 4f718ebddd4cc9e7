"""Blocks: how attention and feed-forward are wired around the residual stream.

Each order is one class of two or three lines; `x` is the residual stream, `attention` and `feed_forward` are
the two branches with their dropout and multiplier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig
from ..configuration.model_facts import layer_view
from ..library.upstream import CACHE, Cache, GradientCheckpointingLayer, takes_cache
from .attention import MoebaAttention, MoebaGroupedQueryAttention
from .balancing import RouterLosses
from .feed_forward import build_feed_forward
from .latent_attention import MoebaLatentAttention
from .norms import build_norm
from .positions import CosSin

Branch = Callable[[torch.Tensor], torch.Tensor]

ATTENTIONS: dict[str, type[MoebaAttention]] = {
    "grouped_query": MoebaGroupedQueryAttention,
    "latent": MoebaLatentAttention,
}


class MoebaDecoderLayer(GradientCheckpointingLayer):
    """One transformer block. Subclasses name their norms and wire the two branches."""

    norm_names: tuple[str, ...] = ()

    def __init__(self, config: MoebaConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = ATTENTIONS[config.attention_type](layer_view(config, layer_idx), layer_idx)
        self.self_attn.config = config  # the attention implementation is the model's, not one layer's
        self.mlp = build_feed_forward(config, layer_idx)
        self.is_sparse = config.mlp_layer_types[layer_idx] == "sparse"
        for name in self.norm_names:
            setattr(self, name, build_norm(config))
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.residual_multiplier = config.residual_multiplier

    def wire(self, x: torch.Tensor, attention: Branch, feed_forward: Branch) -> torch.Tensor:
        """The block's output from its input and its two branches, all `[batch, tokens, hidden]`."""
        raise NotImplementedError

    def _branch(self, output: torch.Tensor) -> torch.Tensor:
        output = self.dropout(output)
        return output if self.residual_multiplier == 1.0 else output * self.residual_multiplier

    @takes_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: CosSin | None = None,
        router_losses: RouterLosses | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The block's output, and what a sparse block contributes to the router losses where some are asked for."""
        own = router_losses.of_one_layer() if self.is_sparse and router_losses is not None else None

        def attention(x: torch.Tensor) -> torch.Tensor:
            output, _ = self.self_attn(
                hidden_states=x,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **{CACHE: past_key_values},
                **kwargs,
            )
            return self._branch(output)

        def feed_forward(x: torch.Tensor) -> torch.Tensor:
            return self._branch(self.mlp(x) if own is None else self.mlp(x, own))

        hidden_states = self.wire(hidden_states, attention, feed_forward)
        return hidden_states, None if own is None else own.layers[0]


class MoebaPreNormLayer(MoebaDecoderLayer):
    """Norm before each branch (GPT-2, Llama)."""

    norm_names = ("input_layernorm", "post_attention_layernorm")

    def wire(self, x: torch.Tensor, attention: Branch, feed_forward: Branch) -> torch.Tensor:
        x = x + attention(self.input_layernorm(x))
        return x + feed_forward(self.post_attention_layernorm(x))


class MoebaNormedResidualLayer(MoebaDecoderLayer):
    """Norm before each branch, which is then added to what the norm returned (BLOOM and Falcon, if asked to)."""

    norm_names = ("input_layernorm", "post_attention_layernorm")

    def wire(self, x: torch.Tensor, attention: Branch, feed_forward: Branch) -> torch.Tensor:
        x = self.input_layernorm(x)
        x = self.post_attention_layernorm(x + attention(x))
        return x + feed_forward(x)


class MoebaPostNormLayer(MoebaDecoderLayer):
    """Norm of the stream after each branch was added (the 2017 Transformer, BERT)."""

    norm_names = ("post_attention_layernorm", "post_feedforward_layernorm")

    def wire(self, x: torch.Tensor, attention: Branch, feed_forward: Branch) -> torch.Tensor:
        x = self.post_attention_layernorm(x + attention(x))
        return self.post_feedforward_layernorm(x + feed_forward(x))


class MoebaSandwichNormLayer(MoebaDecoderLayer):
    """Norm before and after each branch (Gemma 2)."""

    norm_names = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    def wire(self, x: torch.Tensor, attention: Branch, feed_forward: Branch) -> torch.Tensor:
        x = x + self.post_attention_layernorm(attention(self.input_layernorm(x)))
        return x + self.post_feedforward_layernorm(feed_forward(self.pre_feedforward_layernorm(x)))


class MoebaOutputNormLayer(MoebaDecoderLayer):
    """Norm of each branch's output only (OLMo 2)."""

    norm_names = ("post_attention_layernorm", "post_feedforward_layernorm")

    def wire(self, x: torch.Tensor, attention: Branch, feed_forward: Branch) -> torch.Tensor:
        x = x + self.post_attention_layernorm(attention(x))
        return x + self.post_feedforward_layernorm(feed_forward(x))


class MoebaParallelLayer(MoebaDecoderLayer):
    """Both branches read the same normalised input (GPT-J)."""

    norm_names = ("input_layernorm",)

    def wire(self, x: torch.Tensor, attention: Branch, feed_forward: Branch) -> torch.Tensor:
        normed = self.input_layernorm(x)
        return attention(normed) + feed_forward(normed) + x


class MoebaParallelStreamFirstLayer(MoebaParallelLayer):
    """The same sum in another order, which rounds otherwise (Cohere, StableLM)."""

    def wire(self, x: torch.Tensor, attention: Branch, feed_forward: Branch) -> torch.Tensor:
        normed = self.input_layernorm(x)
        return x + attention(normed) + feed_forward(normed)


class MoebaParallelTwoNormsLayer(MoebaDecoderLayer):
    """Both branches read the block's input, each through a norm of its own (GPT-NeoX)."""

    norm_names = ("input_layernorm", "post_attention_layernorm")

    def wire(self, x: torch.Tensor, attention: Branch, feed_forward: Branch) -> torch.Tensor:
        attended = attention(self.input_layernorm(x))
        return feed_forward(self.post_attention_layernorm(x)) + attended + x


BLOCKS: dict[str, type[MoebaDecoderLayer]] = {
    "pre_norm": MoebaPreNormLayer,
    "pre_norm_normed_residual": MoebaNormedResidualLayer,
    "post_norm": MoebaPostNormLayer,
    "sandwich_norm": MoebaSandwichNormLayer,
    "output_norm": MoebaOutputNormLayer,
    "parallel": MoebaParallelLayer,
    "parallel_stream_first": MoebaParallelStreamFirstLayer,
    "parallel_two_norms": MoebaParallelTwoNormsLayer,
}
