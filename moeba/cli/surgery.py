"""Verbs that reshape the experts of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import named_path
from .operations import Destination, Revision, Source, operation

To = Annotated[
    str,
    typer.Option(
        help="A native family that must be able to hold the result; auto: the one most engines serve."
    ),
]
Export = Annotated[
    bool, typer.Option("--export", help="Write the native checkpoint itself, in place of a Moeba one.")
]
Calibration = Annotated[
    list[Path] | None,
    typer.Option(help="A text file that models are run on, one a domain; may be repeated.", metavar="FILE"),
]
Seed = Annotated[int, typer.Option(help="Of all that is random.")]
Layers = Annotated[
    str | None, typer.Option(help="all, every:2, first:6, last:6, from:1, or indices such as 0,2,5.")
]


@operation("surgery")
def upcycle(
    source: Source,
    destination: Destination,
    experts: Annotated[int, typer.Option(help="Experts of each sparse layer.", min=1)],
    top_k: Annotated[int, typer.Option("--top-k", help="Experts that each token visits.", min=1)],
    method: Annotated[
        str, typer.Option(help="copy or fine-grained, which keep the function; drop or noise, which do not.")
    ] = "copy",
    granularity: Annotated[
        int | None, typer.Option(help="With fine-grained: the parts that each feed-forward is cut into.")
    ] = None,
    drop_ratio: Annotated[
        float | None, typer.Option(help="With drop: the share of each copy's neurons that starts anew [0.5].")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="With noise: its size beside the weights' own spread [0.01].")
    ] = None,
    layers: Layers = None,
    shared_expert: Annotated[
        bool, typer.Option("--shared-expert", help="Keep the dense feed-forward too, for every token.")
    ] = False,
    router_init: Annotated[
        str, typer.Option(help="How routers start: normal, zeros, or calibration (from --calibration).")
    ] = "normal",
    calibration: Calibration = None,
    seed: Seed = 0,
    to: To = "auto",
    export: Export = False,
    revision: Revision = None,
) -> None:
    """Grow experts in a dense model; as copies or fine-grained parts they compute the same until trained.

    The proof is a certificate; of the other methods the loss on text is measured. By default all layers but
    the first get experts. Train the result with your usual Trainer script.

    Example: `moeba upcycle my-llama my-moe --experts 8 --top-k 2`

    Straight to a native checkpoint: `moeba upcycle my-llama my-mixtral --experts 8 --top-k 2 --to mixtral --export`
    """


@operation("surgery")
def split(
    source: Source,
    destination: Destination,
    experts: Annotated[
        int, typer.Option(help="Equal parts of each feed-forward, shared ones included.", min=1)
    ],
    top_k: Annotated[
        int, typer.Option("--top-k", help="Parts that each token visits, beside the shared ones.", min=1)
    ],
    method: Annotated[
        str,
        typer.Option(
            help="random, coactivation (on --calibration text) or clusters (of similar input weights)."
        ),
    ] = "random",
    shared: Annotated[int, typer.Option(help="Parts that are always on, as one shared expert.", min=0)] = 0,
    layers: Layers = None,
    router_init: Annotated[
        str | None,
        typer.Option(
            help="normal, calibration or zeros [calibration, if there is text].", show_default=False
        ),
    ] = None,
    calibration: Calibration = None,
    seed: Seed = 0,
    to: To = "auto",
    export: Export = False,
    revision: Revision = None,
) -> None:
    """Divide the feed-forwards of a dense model into smaller experts. Lossy until trained; the loss is measured.

    With text to calibrate on, routers start by finding the parts that answer most. Visiting all parts keeps
    the function, which is proven then. By default all layers but the first are split.

    Example: `moeba split my-llama my-moe --experts 16 --top-k 8 --shared 2 --calibration some.txt`
    """


@operation("surgery")
def merge(
    recipe: Annotated[
        Path,
        typer.Argument(help="A YAML file in the words of mergekit-moe.", metavar="RECIPE", parser=named_path),
    ],
    destination: Destination,
    to: Annotated[
        str | None,
        typer.Option(help="A native family that must be able to hold the result [the recipe's, or auto]."),
    ] = None,
    vocab: Annotated[
        str | None,
        typer.Option(
            help="Where tokens or rows of embeddings differ: strict refuses, trim keeps the rows that all share, "
            "pad as many as the largest, union all tokens by their text [the recipe's, or strict].",
        ),
    ] = None,
    export: Export = False,
) -> None:
    """Turn several models of one base, or LoRA adapters of it, into the experts of one model.

    Routers start from each source's prompts or text. How far the merge is from each source is measured on
    that source's own text; a merge of equal models is proven to compute the same.

    Example: `moeba merge recipe.yaml my-moe`, where recipe.yaml holds

    `{base_model: my-base, experts: [{source_model: my-coder, calibration: code.txt}, {adapter: my-lora,
    calibration: letters.txt}]}`
    """


@operation("surgery")
def grow(
    source: Source,
    destination: Destination,
    times: Annotated[int | None, typer.Option(help="How many times as many experts.")] = None,
    experts: Annotated[int | None, typer.Option(help="Or: how many experts a layer has then.")] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", help="Experts that a token visits then; default: as many times more, which is exact."
        ),
    ] = None,
    noise: Annotated[
        float, typer.Option(help="On all copies but the first, beside a row's own spread; any is lossy.")
    ] = 0.0,
    calibration: Calibration = None,
    seed: Seed = 0,
    to: To = "auto",
    export: Export = False,
    revision: Revision = None,
) -> None:
    """Copy the experts of a mixture, router rows included, so that there are several times as many.

    A token then visits as many times more of them, and the model computes the same, which a certificate
    proves. With another --top-k, or with noise, it does not, and the loss on text is measured.

    Example: `moeba grow my-moe my-larger-moe --times 2`

    As many experts a token as before: `moeba grow my-moe my-larger-moe --times 2 --top-k 2 --noise 0.01`
    """


@operation("surgery")
def prune(
    source: Source,
    destination: Destination,
    calibration: Annotated[
        list[Path],
        typer.Option(help="A text file that experts are judged on; may be repeated.", metavar="FILE"),
    ],
    keep: Annotated[int | None, typer.Option(help="Experts that each layer keeps.")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Or: the share of experts that is taken out, such as 0.25.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="reap: by what an expert adds where it is visited. load: by visits.")
    ] = "reap",
    uneven: Annotated[
        bool, typer.Option("--uneven", help="Let layers keep different numbers; only Moeba holds that.")
    ] = False,
    to: To = "auto",
    export: Export = False,
    revision: Revision = None,
) -> None:
    """Take out the experts that matter least on calibration text, and measure what is lost.

    Example: `moeba prune my-moe my-smaller-moe --ratio 0.25 --calibration text.txt`
    """


@operation("surgery")
def densify(
    source: Source,
    destination: Destination,
    method: Annotated[
        str,
        typer.Option(help="average of the experts; load, counted by visits; or expert, the one of --expert."),
    ] = "average",
    expert: Annotated[int | None, typer.Option(help="With expert: which one, from 0.")] = None,
    granularity: Annotated[
        int | None,
        typer.Option(help="Experts that are parts of one feed-forward; default: as surgery.json says."),
    ] = None,
    calibration: Calibration = None,
    to: To = "auto",
    export: Export = False,
    revision: Revision = None,
) -> None:
    """Make one feed-forward of the experts of each layer.

    An untrained upcycle gives back the dense model that it was made from, which a certificate proves. Of any
    other mixture of experts the loss on text is measured, and it is not small.

    Example: `moeba densify my-moe my-dense --method load --calibration text.txt`
    """


VERBS = (upcycle, split, merge, grow, prune, densify)
