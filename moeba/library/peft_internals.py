"""Undocumented names of PEFT that Moeba reaches; needs the extra `peft`."""

from __future__ import annotations

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper  # LoRA on 3-D parameters, since 0.17
from peft.utils import ModulesToSaveWrapper


def holds_matrices_transposed(wrapper: ParamWrapper) -> bool:
    """Whether PEFT took the last dimension of an expert's matrix for its inputs."""
    return getattr(wrapper, "_did_swap_in_out_features", False)


__all__ = ["LoraLayer", "ModulesToSaveWrapper", "ParamWrapper", "holds_matrices_transposed"]
