"""What a user may choose about the GPU kernels, for the whole process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    """The choices, with their defaults.

    `recompute`: keep no activations of the experts for the backward, which then runs the first product once more: a
    third of the forward's work for `tokens * top_k * inner rows` numbers of memory a layer.
    `autotune`: time a few tile shapes at the first call of each kind, and remember the best; without it, the first
    shape of each list in `tuning.py`. Nothing is timed while a CUDA graph is being captured.
    """

    recompute: bool = False
    autotune: bool = True


settings = Settings()
