"""The model, one file a part."""

from .modeling_moeba import (
    MoebaForCausalLM,
    MoebaForQuestionAnswering,
    MoebaForSequenceClassification,
    MoebaForTokenClassification,
    MoebaModel,
    MoebaPreTrainedModel,
)

__all__ = [
    "MoebaForCausalLM",
    "MoebaForQuestionAnswering",
    "MoebaForSequenceClassification",
    "MoebaForTokenClassification",
    "MoebaModel",
    "MoebaPreTrainedModel",
]
