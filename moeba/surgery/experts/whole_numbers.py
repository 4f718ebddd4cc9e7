"""Feed-forwards that are stored as whole numbers: they can be copied, and nothing computed with them."""

from __future__ import annotations

from ...conversion.checkpoint import TensorSource
from ...conversion.json_files import listing


def refuse_whole_numbers(tensors: TensorSource, what: str, *, everywhere: bool = False) -> None:
    """
    Args:
        what: would compute with them, in the words of the user's argument.
        everywhere: not in the feed-forwards alone.

    Raises:
        ValueError: tensors are stored as integers, to which results would be cut.
    """
    found = {
        name: info.dtype
        for name, info in tensors.tensors.items()
        if not (info.dtype.is_floating_point or info.dtype.is_complex) and (everywhere or ".mlp." in name)
    }
    if found:
        dtypes = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in found.values()}))
        raise ValueError(
            f"{what} computes with the weights, and these are stored as {dtypes}, to which every result would be cut: "
            f"{listing(sorted(found))}. If they are quantised, start from the unquantised checkpoint; else store them "
            "in a floating dtype."
        )
