"""Router rows for a model that has just grown experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..modeling import MoebaForCausalLM

CHOICES = ("normal", "zeros", "calibration")


def random_rows(choice: str, shape: tuple[int, int], std: float, seed: int, layer: int) -> torch.Tensor:
    """`[experts, hidden]` in float32: small normal noise of its own for each layer and seed, or zeros."""
    if choice == "zeros":
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(seed * 100_003 + layer)
    return torch.randn(shape, generator=generator) * std


def calibrated_rows(
    model: MoebaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    layers: Sequence[int],
    experts: int,
    seed: int,
    max_tokens: int = 4096,
) -> dict[int, torch.Tensor]:
    """Router rows that send tokens to the nearest of `experts` clusters of the feed-forward's true inputs.

    The clusters are found among directions (spherical k-means) of what each layer's feed-forward receives, after its
    norm, when the dense model reads the texts. Rows are orthogonal to the mean input, so that what all tokens share
    favours no expert, and scaled so that logits have a standard deviation of about 1.

    Raises:
        ValueError: too few tokens to find that many clusters.
    """
    inputs = feed_forward_inputs(model, tokenizer, texts, layers, max_tokens)
    rows = {}
    for layer, vectors in inputs.items():
        if vectors.shape[0] < 4 * experts:
            raise ValueError(
                f"calibration gave {vectors.shape[0]} tokens for {experts} experts: give at least {4 * experts} "
                "tokens of text."
            )
        mean = vectors.mean(dim=0)
        centroids = spherical_kmeans(vectors - mean, experts, seed + layer)
        shared = nn.functional.normalize(mean, dim=0)
        centroids = centroids - torch.outer(centroids @ shared, shared)
        centroids = centroids - centroids.mean(dim=0)
        rows[layer] = centroids / (vectors @ centroids.T).std().clamp(min=1e-12)
    return rows


def feed_forward_inputs(
    model: MoebaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    layers: Sequence[int],
    max_tokens: int,
    window: int = 256,
) -> dict[int, torch.Tensor]:
    """What each layer's feed-forward receives, `[tokens, hidden]` in float32, over the first `max_tokens` tokens."""
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= max_tokens:
            break
    if not ids:
        raise ValueError("the calibration text is empty.")
    window = min(window, model.config.max_position_embeddings)
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}

    def recorder(layer: int) -> Any:
        def record(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen[layer].append(args[0].detach().float().reshape(-1, args[0].shape[-1]))

        return record

    handles = [model.model.layers[layer].mlp.register_forward_pre_hook(recorder(layer)) for layer in layers]
    try:
        with torch.no_grad():
            for start in range(0, min(len(ids), max_tokens), window):
                model(torch.tensor([ids[start : start + window]]), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: torch.cat(parts) for layer, parts in seen.items()}


def spherical_kmeans(vectors: torch.Tensor, clusters: int, seed: int, steps: int = 20) -> torch.Tensor:
    """Unit centroids `[clusters, hidden]` of the directions of `vectors` `[n, hidden]`; empty clusters are reseeded."""
    directions = nn.functional.normalize(vectors, dim=-1)
    generator = torch.Generator().manual_seed(seed)
    centroids = directions[torch.randperm(len(directions), generator=generator)[:clusters]].clone()
    for _ in range(steps):
        nearest, owner = (directions @ centroids.T).max(dim=-1)
        sums = torch.zeros_like(centroids).index_add_(0, owner, directions)
        empty = torch.bincount(owner, minlength=clusters) == 0
        if empty.any():
            # The tokens that fit their cluster worst start the new ones.
            sums[empty] = directions[nearest.argsort()[: int(empty.sum())]]
        centroids = nn.functional.normalize(sums, dim=-1)
    return centroids


def degeneracy(rows: torch.Tensor) -> float:
    """Largest cosine between two rows, 1 when two experts cannot be told apart."""
    directions = nn.functional.normalize(rows.float(), dim=-1)
    cosines = directions @ directions.T
    return cosines.fill_diagonal_(-1.0).max().item() if len(rows) > 1 else -1.0


def read_texts(files: Sequence[str | Path]) -> list[str]:
    """The texts of calibration files.

    Raises:
        ValueError: none is given, or one cannot be read as UTF-8.
    """
    if not files:
        raise ValueError("router_init='calibration' needs calibration text files (--calibration FILE).")
    texts = []
    for file in files:
        try:
            texts.append(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"calibration file {file}: {error}") from error
    return texts
