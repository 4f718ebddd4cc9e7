"""How well language models predict text and choose answers, on one dataset and the same for all of them."""

from .language_modeling import Tally, perplexity
from .results import Evaluation
from .run import evaluate
from .windows import Window, sliding_windows

__all__ = ["Evaluation", "Tally", "Window", "evaluate", "perplexity", "sliding_windows"]
