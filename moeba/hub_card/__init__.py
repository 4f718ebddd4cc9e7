"""The model card, written from the files of a model folder alone, and the folder made ready for the Hub."""

from .bundle import bundle, prepare
from .card import write_card
from .facts import gather_facts

__all__ = ["bundle", "gather_facts", "prepare", "write_card"]
