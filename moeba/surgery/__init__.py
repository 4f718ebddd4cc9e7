"""Operations that change what a checkpoint is made of: each a plan over checkpoint folders."""

from .upcycle import upcycle

__all__ = ["upcycle"]
