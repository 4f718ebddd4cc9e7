"""The families of the self-check, and the steps that each goes through: every step raises if it finds a fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from ..conversion import certify, convert, export
from ..library.upstream import generated
from ..surgery import grow, upcycle

CLOSE = 1e-4  # of the logits' spread, in float32: sums over experts round otherwise
TOKENS = 8
# Large weights: no two tokens are nearly as likely, and experts that are mixed up show.
_COMMON: dict[str, Any] = dict(
    vocab_size=64, bos_token_id=1, eos_token_id=None, pad_token_id=0, initializer_range=0.2
)


@dataclass(frozen=True)
class Trial:
    """
    Attributes:
        sizes: of the native config.
        reshape: the surgery that fits the family, and its arguments.
        home: the native family that the result of the surgery is exported to; None: the converted model is, to its own.
    """

    family: str
    sizes: dict[str, Any]
    reshape: Callable[..., Any]
    arguments: dict[str, Any]
    home: str | None

    def steps(self, folder: Path) -> list[Step]:
        """What happens in `folder`, in order, and which earlier step each one builds on."""
        native, moeba, sparse, out = (folder / name for name in ("native", "moeba", "reshaped", "exported"))
        before, target = (sparse, self.home) if self.home else (moeba, self.family)
        return [
            Step("make", None, lambda: self._make(native)),
            Step("convert", "make", lambda: _silent(convert, native, moeba)),
            Step("certify", "convert", lambda: _certified(native, moeba)),
            Step(self.reshape.__name__, "convert", lambda: self._reshaped(moeba, sparse)),
            Step("generate", "convert", lambda: _generates(native, moeba)),
            Step(
                "export",
                self.reshape.__name__ if self.home else "convert",
                lambda: _exported(before, out, target),
            ),
        ]

    def _make(self, folder: Path) -> str:
        torch.manual_seed(0)
        config = CONFIG_MAPPING[self.family](**_COMMON, **self.sizes)
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
        return f"{model.num_parameters():,} parameters"

    def _reshaped(self, source: Path, target: Path) -> str:
        _silent(self.reshape, source, target, **self.arguments)
        return _same(source, target)


@dataclass(frozen=True)
class Step:
    """`run` returns what it found, in a few words."""

    name: str
    needs: str | None
    run: Callable[[], str]


_SIZES: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
_EXPERTS: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)
_COPIES: dict[str, Any] = dict(experts=4, top_k=2, layers="all")
# Dense with rope and RMSNorm; a mixture with norms of queries and keys; learned positions, LayerNorm and a plain MLP.
TRIALS: Sequence[Trial] = (
    Trial("llama", _SIZES, upcycle, _COPIES | {"to": "mixtral"}, "mixtral"),
    Trial("qwen3_moe", _SIZES | _EXPERTS, grow, {"times": 2}, "qwen3_moe"),
    Trial("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=64), upcycle, _COPIES, None),
)


def _silent(operation: Callable[..., Any], source: Path, target: Path, **words: Any) -> str:
    """Without a certificate: the step beside it compares."""
    report = operation(source, target, certificate=False, **words).report
    return f"{report.tensors} tensors"


def _certified(source: Path, target: Path) -> str:
    certificate = certify(source, target)
    if certificate.verdict != "verified":
        failed = [f"{check.name}: {check.detail}" for check in certificate.checks if check.status == "failed"]
        raise ValueError(f"the certificate is {certificate.verdict}: {'; '.join(failed)}")
    return f"verified, {len(certificate.negative_controls)} planted faults caught"


def _exported(source: Path, target: Path, family: str) -> str:
    _silent(export, source, target, to=family)
    return f"{family}, {_same(source, target)}"


def _same(first: Path, second: Path) -> str:
    """Compare the logits of two folders, each loaded as its user would."""
    ids = torch.arange(1, 33)[None]
    with torch.no_grad():
        a, b = (_load(folder)(ids).logits for folder in (first, second))
    off = ((a - b).abs().max() / a.std()).item()
    if not off <= CLOSE:
        raise ValueError(f"the logits differ by {off:.1g} of their spread")
    return f"logits {off:.0e} of their spread apart"


def _generates(native: Path, moeba: Path) -> str:
    """The same tokens as the stock model, and the same as without a cache."""
    prompt = torch.tensor([[1, 5, 9]])
    cached = [_continued(_load(folder), prompt) for folder in (native, moeba)]
    without = _continued(_load(moeba), prompt, use_cache=False)
    if cached[0] != cached[1]:
        raise ValueError(f"other tokens than the stock model's: {cached[1]} against {cached[0]}")
    if cached[1] != without:
        raise ValueError(f"other tokens with a cache than without: {cached[1]} against {without}")
    return f"{TOKENS} tokens, the stock model's, with a cache and without"


def _load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def _continued(model: PreTrainedModel, prompt: torch.Tensor, **words: Any) -> list[int]:
    mask = torch.ones_like(prompt)
    output = generated(model, prompt, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS, **words)
    return output[0, prompt.shape[1] :].tolist()
