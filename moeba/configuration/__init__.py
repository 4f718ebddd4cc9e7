"""The config of every Moeba model, and what can be computed from it without building one."""

from .configuration_moeba import MoebaConfig

__all__ = ["MoebaConfig"]
