"""The model card, written from the files of a model folder alone; the folder made ready for the Hub, and pushed."""

from .bundle import bundle, prepare
from .card import write_card
from .facts import gather_facts
from .hub_errors import PushError
from .push import PushResult, push

__all__ = ["PushError", "PushResult", "bundle", "gather_facts", "prepare", "push", "write_card"]
