"""Which layers an operation touches, in the words of the command line."""

from __future__ import annotations

from ..configuration.ranges import MOST_LAYERS

WORDS = "all, every:2, first:6, last:6, from:1 or a list such as 0,2,5"


def parse_layers(choice: str, num_layers: int) -> list[int]:
    """Layer indices for `all`, `every:N` (the last of each N), `first:N`, `last:N`, `from:N` or a list.

    Raises:
        ValueError: an unknown word, or a layer that does not exist.
    """
    word, _, number = choice.partition(":")
    every = list(range(num_layers))
    if choice == "all":
        return every
    if word in ("every", "last", "first", "from") and number.isdecimal():
        count = int(number[:20])
        if count > MOST_LAYERS or (word != "from" and count < 1):
            raise ValueError(f"layers={choice[:40]!r}: the model has {num_layers} layers; say {WORDS}.")
        picked = {"every": every[count - 1 :: count], "last": every[-count:], "first": every[:count]}
        return picked.get(word, every[count:])
    try:
        numbers = [int(item) for item in choice.split(",")]
    except ValueError:
        raise ValueError(f"layers={choice[:40]!r}: say {WORDS}.") from None
    layers = sorted(set(numbers))
    if len(layers) < len(numbers):
        twice = sorted({layer for layer in numbers if numbers.count(layer) > 1})
        raise ValueError(f"layers={choice[:40]!r}: {twice[:10]} stand twice.")
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong:
        raise ValueError(
            f"layers={choice[:40]!r}: {wrong[:10]} do not exist, the model has layers 0 to {num_layers - 1}."
        )
    return layers
