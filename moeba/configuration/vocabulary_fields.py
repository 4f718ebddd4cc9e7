"""Token ids in and out: the embedding and the language-modelling head."""

from collections.abc import Iterator
from typing import Any, Literal

from .fields import Filled, Needs, WrongValue, dropped, part, says
from .ranges import COUNT, MOST, NOT_ZERO, POSITIVE

_PADS = Needs(lambda c: c.pad_token_id is not None, "a pad_token_id")


def _one(token: int | list[int] | None) -> int | None:
    return None if token is None else 1  # some native configs must have one


@part()
class VocabularyFields:
    """Embeddings and head (`modeling/modeling_moeba.py`)."""

    # fmt: off
    vocab_size: int = says(
        "number of token ids", default=32000, within=COUNT, live=True, small=lambda size: min(size, 96),
        unplanted="a shape")
    hidden_size: int = says("width of the residual stream", default=768, within=COUNT, unplanted="a shape")
    embedding_size: Filled[int] = says(
        "width of the embedding table, default `hidden_size`; another width is projected in and out (OPT-350m)",
        default=None, within=COUNT, fills=lambda c: c.hidden_size, unplanted="a shape")
    tie_word_embeddings: bool = says(
        "embedding and head are one table", default=False, live=True, unplanted="a fault of tensors")
    embedding_norm: bool = says(
        "normalise the embedded tokens (BLOOM)", default=False,
        wrong=(dropped("embedding norm dropped", "embedding_norm", False),))
    embedding_multiplier: float | int = says(
        "factor on the token embeddings", default=1.0, within=NOT_ZERO, live=True,
        wrong=(dropped("embedding multiplier dropped", "embedding_multiplier", 1.0),))
    round_embedding_multiplier: bool = says(
        "round that factor to the model's dtype first (Gemma)", default=False, live=True,
        needs=(Needs(lambda c: c.embedding_multiplier != 1.0, "an embedding_multiplier"),),
        wrong=(WrongValue("rounding of the embedding multiplier flipped",
            lambda c: {"round_embedding_multiplier": not c.round_embedding_multiplier}, seen="half"),))
    train_padding_embedding: bool = says(
        "the embedding of `pad_token_id` learns like any other (GPT-2)", default=False, needs=(_PADS,),
        may_idle=True, effect="training", live=True)
    lm_head_bias: bool = says(
        "bias of the head", default=False, needs=(Needs(lambda c: c.is_causal, "is_causal=True"),),
        unplanted="a fault of tensors")
    logit_scale: float | int = says(
        "what logits are scaled by", default=1.0, within=NOT_ZERO, live=True,
        wrong=(dropped("logit scale dropped", "logit_scale", 1.0),))
    logit_scale_operation: Literal["multiply", "divide"] = says(
        "by that number as a factor (Cohere) or as a divisor (Granite's `logits_scaling`)",
        default="multiply", live=True, needs=(Needs(lambda c: c.logit_scale != 1.0, "a logit_scale"),),
        unplanted="as a dropped logit_scale")
    final_logit_softcapping: float | int | None = says(
        "logits become `c * tanh(logits / c)`", default=None, within=POSITIVE, live=True,
        wrong=(dropped("final softcap dropped", "final_logit_softcapping", None),))
    pad_token_id: int | None = says(
        "the token that fills a batch", default=None, live=True, small=lambda token: None,
        unplanted="read by generation")
    bos_token_id: int | None = says(
        "the token that begins a text", default=None, live=True, small=_one, unplanted="read by generation")
    eos_token_id: int | list[int] | None = says(
        "the token, or tokens, that end it", default=None, live=True, small=_one,
        unplanted="read by generation")


def vocabulary_problems(config: Any) -> Iterator[str]:
    """Special tokens that no embedding has. Others outside the vocabulary just never occur, as in stock models."""
    vocab, pad = config.vocab_size, config.pad_token_id
    # Counted from the end where negative, as in PyTorch; published configs say -1 for none.
    if pad is not None and not -vocab <= pad < vocab:
        yield f"pad_token_id={pad} must be below vocab_size={vocab}, as the padding has an embedding"
    for name in ("bos_token_id", "eos_token_id"):
        ids = getattr(config, name)
        for token in ids if isinstance(ids, list) else [ids]:
            if token is not None and not -1 <= token <= MOST:
                yield f"{name}={ids} is no token id"
