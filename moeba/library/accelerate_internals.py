"""Undocumented names of accelerate that Moeba reaches."""

from __future__ import annotations

from accelerate.hooks import attach_align_device_hook  # what `dispatch_model` loads offloaded weights with

__all__ = ["attach_align_device_hook"]
