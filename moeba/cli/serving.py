"""The verb that answers over HTTP: serve, which is `transformers serve` with Moeba registered."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import note, one_line


def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A model folder, native or Moeba, or a Hub id.", metavar="DIR")
    ],
) -> None:
    """Serve a model with an API like OpenAI's, by transformers' own server.

    `transformers serve` knows the classes of transformers alone; this starts it where Moeba's are known too, and hands
    every other option on: `--host`, `--port`, `--device`, `--dtype`, `--continuous-batching` … (`transformers serve
    --help` lists them). It needs `pip install "moeba[serve]"`.

    Example: `moeba serve my-moe --port 8000`, then

    `curl localhost:8000/v1/completions -H "Content-Type: application/json" -d '{"model": "my-moe", "prompt": "Once"}'`
    """
    from ..conversion import resolve
    from ..library.serving import transformers_serve

    resolve(model, any_type=True)
    note(f"Serving {model}; stop with Ctrl-C.")
    try:
        transformers_serve([model, *context.args])
    except ImportError as error:
        raise ImportError(f'{one_line(error)}: pip install "moeba[serve]"') from error


VERBS = (serve,)
