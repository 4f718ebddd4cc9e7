"""Experts at the speed of the machine, under the name "moeba" in transformers' experts interface."""

from .implementation import NAME, register_experts, release_memory

__all__ = ["NAME", "register_experts", "release_memory"]
