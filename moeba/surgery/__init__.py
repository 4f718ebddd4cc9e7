"""Operations that change what a checkpoint is made of: each a plan over checkpoint folders."""

from .densify import densify
from .grow import grow
from .merge import merge
from .prune import prune
from .split import split
from .upcycle import upcycle

__all__ = ["densify", "grow", "merge", "prune", "split", "upcycle"]
