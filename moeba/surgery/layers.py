"""Which layers an operation touches, in the words of the command line."""

from __future__ import annotations


def parse_layers(choice: str, num_layers: int) -> list[int]:
    """Layer indices for `all`, `every:N` (the last of each N), `last:N`, `first:N` or a list such as `0,2,5`.

    Raises:
        ValueError: an unknown word, or a layer that does not exist.
    """
    word, _, number = choice.partition(":")
    if choice == "all":
        return list(range(num_layers))
    if word in ("every", "last", "first") and number.isdigit() and int(number) > 0:
        count = int(number)
        if word == "every":
            return list(range(count - 1, num_layers, count))
        return list(range(num_layers))[-count:] if word == "last" else list(range(num_layers))[:count]
    try:
        layers = sorted({int(item) for item in choice.split(",")})
    except ValueError:
        raise ValueError(
            f"layers={choice!r}: say all, every:2, last:6, first:6 or a list such as 0,2,5."
        ) from None
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong:
        raise ValueError(
            f"layers={choice!r}: {wrong} do not exist, the model has layers 0 to {num_layers - 1}."
        )
    return layers
