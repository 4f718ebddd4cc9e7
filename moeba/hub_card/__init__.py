"""The model card, written from the files of a model folder alone; the folder made ready for the Hub, and pushed."""

from .bundle import bundle, prepare
from .card import write_card
from .push import PushResult, push
from .pushing.hub_errors import PushError
from .pushing.trainer_card import keep_card
from .reading.facts import gather_facts

__all__ = ["PushError", "PushResult", "bundle", "gather_facts", "keep_card", "prepare", "push", "write_card"]
