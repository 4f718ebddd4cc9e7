"""Upcycling: the feed-forwards of a dense model become experts.

As copies or as shards the function is kept exactly: the chosen experts' weights sum to 1, so whatever the router picks,
the layer computes what the dense one did, and the router is free to learn from there. The other ways start from a
damaged model, by a measured gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from typing_extensions import Unpack

from ..conversion.job import Result, Run, RunOptions
from .experts.experts_from_dense import Copies, Dropped, Noisy, Shards
from .experts.upcycling import Upcycling, dtypes
from .experts.whole_numbers import refuse_whole_numbers
from .routers.router_init import CHOICES
from .routers.shaping import require_home
from .routers.virtual_groups import integrity
from .running.operation import Measure, Surgery, arguments, before_reading
from .running.sources import Source
from .running.texts import Texts

METHODS = ("copy", "fine-grained", "drop", "noise")


def upcycle(
    source: str | Path,
    destination: str | Path,
    *,
    experts: int,
    top_k: int,
    method: str = "copy",
    granularity: int | None = None,
    drop_ratio: float | None = None,
    noise: float | None = None,
    layers: str | None = None,
    shared_expert: bool = False,
    router_init: str = "normal",
    calibration: Sequence[str | Path] = (),
    seed: int = 0,
    to: str = "auto",
    export: bool = False,
    revision: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Turn a dense checkpoint (native or Moeba) into a mixture of experts.

    Args:
        experts: of each sparse layer, all counted. top_k: how many of them a token visits.
        method: `copy` (each expert is the whole feed-forward) and `fine-grained` (a part of it) keep the function;
            `drop` (a share of each copy's neurons starts anew) and `noise` do not.
        granularity: with `fine-grained`, the parts a feed-forward is cut into; `experts` and `top_k` are multiples.
        drop_ratio: with `drop`, that share; default 0.5.
        noise: with `noise`, its size beside the weights' own standard deviation; default 0.01.
        layers: `all`, `every:2`, `first:6`, `last:6`, `from:1` or a list such as `0,2,5`. Default `from:1`; `all` where
            the family in `to` has experts in every layer.
        shared_expert: keep the dense feed-forward as well, as an expert that every token visits; each side then
            counts half.
        router_init: `normal` (small noise), `zeros`, or `calibration`: rows found from the feed-forward's true inputs
            while the dense model reads the `calibration` text files, each of which gets its share of the experts.
        calibration: also what a gap is measured on.
        seed: of all that is random.
        to: the native family that must be able to hold the result, or `auto`; see `shaping`.
        export: write the native checkpoint itself, in place of a Moeba one.
        run: see `Run`.

    Raises:
        ValueError: the source has experts already, or an argument does not fit it.
        CertificateError: the proof failed; nothing is published.
    """
    asked = arguments(locals())
    maker = _maker(method, experts, top_k, granularity, drop_ratio, noise, seed)
    if router_init not in CHOICES:
        raise ValueError(f"router_init={router_init!r}: choose one of {', '.join(CHOICES)}.")
    if router_init == "calibration" and not calibration:
        raise ValueError("router_init='calibration' needs calibration text files (--calibration FILE).")
    if calibration and router_init != "calibration" and maker.keeps_function:
        raise ValueError(f"calibration files are given, but router_init={router_init!r} reads none.")
    if router_init == "zeros" and maker.granularity > 1:
        raise ValueError(
            "router_init='zeros' lets ties choose, so a token may miss a part: fine-grained experts need normal or "
            "calibration."
        )
    options = Run(**run)
    opened = Source(source, revision)
    texts = Texts.read(calibration) if calibration else None
    if not maker.keeps_function or maker.granularity > 1 or shared_expert:
        asked_for = f"method={method!r}" + (" with a shared expert" if shared_expert else "")
        refuse_whole_numbers(opened.tensors, asked_for)
    upcycling = Upcycling(opened.config, maker, top_k, shared_expert, seed)
    family, notes = upcycling.settle(layers, to, dtypes(opened.tensors))
    require_home(family, export)
    if router_init == "calibration" and not options.dry_run:
        assert texts is not None
        before_reading([opened], destination, options)
        upcycling.calibrate(opened, texts)
    elif router_init != "calibration":
        upcycling.router_init = router_init
    plan = upcycling.plan(opened.tensors)
    plan.notes += notes
    return Surgery(
        sources=[opened],
        plan=plan,
        config=upcycling.config,
        recipe={
            **asked,
            "texts": texts.digests() if texts else {},
            "sparse_layers": upcycling.config.sparse_layers,
        },
        family=family,
        twins=upcycling.twins if maker.keeps_function else None,
        examine=partial(integrity, maker.granularity) if maker.granularity > 1 else None,
        measure=Measure(opened, texts),
        reports={"router": upcycling.reports} if upcycling.reports else {},
    ).run(destination, export, options)


def _maker(
    method: str,
    experts: int,
    top_k: int,
    granularity: int | None,
    drop_ratio: float | None,
    noise: float | None,
    seed: int,
) -> Copies:
    """The way that `method` names, with its own argument; those of the others are refused."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}.")
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k={top_k} must be between 1 and experts={experts}.")
    own = {"fine-grained": "granularity", "drop": "drop_ratio", "noise": "noise"}
    given = {"granularity": granularity, "drop_ratio": drop_ratio, "noise": noise}
    for name, value in given.items():
        if value is not None and own.get(method) != name:
            raise ValueError(f"{name}={value} is given, but method={method!r} has none.")
    if method == "drop":
        ratio = 0.5 if drop_ratio is None else drop_ratio
        if not 0 < ratio <= 1:
            raise ValueError(f"drop_ratio={ratio} must be above 0 and at most 1.")
        return Dropped(experts, seed, ratio)
    if method == "noise":
        size = 0.01 if noise is None else noise
        if not (size > 0 and math.isfinite(size)):
            raise ValueError(f"noise={size} must be a positive number.")
        return Noisy(experts, seed, size)
    if method == "copy":
        return Copies(experts, seed)
    if granularity is None or granularity < 2:
        raise ValueError(
            f"granularity={granularity}: fine-grained experts need a feed-forward cut into 2 or more."
        )
    for name, value in (("experts", experts), ("top_k", top_k)):
        if value % granularity:
            raise ValueError(f"{name}={value} must be a multiple of granularity={granularity}.")
    return Shards(experts, seed, granularity)
