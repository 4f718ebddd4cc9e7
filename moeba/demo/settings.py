"""Every number of the demo in one place."""

from __future__ import annotations

from dataclasses import dataclass

from .corpus import Choice


@dataclass(frozen=True)
class DemoSettings:
    """The defaults take about four minutes on two CPU cores; `TINY` takes seconds and learns next to nothing.

    Attributes:
        corpus: which side of the standard library is read.
        every_file: 2 takes every second of its files.
        held_out: share of those files that is kept for evaluation.
        vocab_size: tokens of the tokenizer at most.
        hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads: the Llama that is trained first.
        sequence_length: tokens of one training or evaluation window.
        batch_size: windows a step.
        pretrain_steps, finetune_steps: of the Llama; then of the MoE and of its dense control, alike.
        pretrain_lr, finetune_lr: peak learning rates; both decay to zero.
        held_out_windows: how many windows perplexity is measured on.
        experts, top_k: of the MoE.
        new_tokens: how long each sample is.
        seed: of weights, data order, router and samples.
    """

    corpus: Choice = "code"
    every_file: int = 2
    held_out: float = 0.05
    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    sequence_length: int = 256
    batch_size: int = 4
    pretrain_steps: int = 640
    finetune_steps: int = 240
    pretrain_lr: float = 4e-3
    finetune_lr: float = 1e-3
    held_out_windows: int = 64
    experts: int = 8
    top_k: int = 2
    new_tokens: int = 60
    seed: int = 0


TINY = DemoSettings(
    every_file=16,
    held_out=0.2,
    vocab_size=512,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    sequence_length=64,
    pretrain_steps=6,
    finetune_steps=3,
    held_out_windows=4,
    experts=4,
    new_tokens=8,
)

PROMPTS = ("def __init__(self, ", "import os\nimport ", '    """Return the ')
"""What the trained MoE is asked to go on from."""
