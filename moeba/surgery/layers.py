"""Which layers an operation touches, in the words of the command line."""

from __future__ import annotations

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
    if word == "from" and number.isdigit():
        return every[int(number) :]
    if word in ("every", "last", "first") and number.isdigit() and int(number) > 0:
        count = int(number)
        return {"every": every[count - 1 :: count], "last": every[-count:], "first": every[:count]}[word]
    try:
        layers = sorted({int(item) for item in choice.split(",")})
    except ValueError:
        raise ValueError(f"layers={choice!r}: say {WORDS}.") from None
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong:
        raise ValueError(
            f"layers={choice!r}: {wrong} do not exist, the model has layers 0 to {num_layers - 1}."
        )
    return layers
