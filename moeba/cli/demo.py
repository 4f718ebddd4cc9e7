"""The verb that shows everything at once: demo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..demo.journal import Entry
from ..demo.settings import TINY, DemoSettings
from ..demo.watcher import Watcher
from .console import emit, err, note, out, quiet_datasets, say
from .operations import Json


def demo(
    folder: Annotated[Path, typer.Option(help="Where to work; run again to go on from there.")] = Path(
        "moeba-demo"
    ),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Seconds instead of minutes; it learns nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take the main road once, on real text, without a network, in a few minutes on two CPU cores.

    Trains a tokenizer and a small native Llama on the Python standard library, converts it, grows experts in
    it, trains them beside a dense control, generates text, exports to Mixtral, and makes a folder for the
    Hub. Each step shows its proof. What a run has finished, the next one takes over.

    Example: `moeba demo --folder my-demo`
    """
    quiet_datasets("the demo", "train")
    from ..demo.run import run

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    console = err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        entries = run(folder, TINY if tiny else DemoSettings(), _Terminal(bar))
    if as_json:
        emit([asdict(entry) for entry in entries])
        return
    _show(entries, folder)


VERBS = (demo,)


class _Terminal(Watcher):
    """Shows the running step as a bar, and each finished one as a line on stderr."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("", what="", visible=False)
        self.place = ""

    def begins(self, number: int, count: int, title: str) -> Callable[[int, int, str], None]:
        self.place = f"{number}/{count}"
        self.bar.reset(self.task, total=None, description=f"{self.place} {title}", what="", visible=True)
        return lambda done, total, what: self.bar.update(self.task, completed=done, total=total, what=what)

    def ends(self, entry: Entry, reused: bool) -> None:
        time = "taken over" if reused else f"{entry.seconds:.1f} s"
        self.bar.console.print(f"{self.place} {entry.title} ({time}): {entry.proof}", markup=False)


def _show(entries: list[Entry], folder: Path) -> None:
    """What the MoE writes, then every step with its proof and the time it took when it ran."""
    samples = next(entry.figures["samples"] for entry in entries if "samples" in entry.figures)
    for item in samples:
        say(f"--- {item['prompt']!r} goes on:")
        say(item["text"])
    table = Table(title=f"moeba demo in {folder}", title_justify="left", show_lines=True)
    for title in ("step", "proof"):
        table.add_column(title, overflow="fold")
    table.add_column("seconds", justify="right")
    for entry in entries:
        table.add_row(entry.title, entry.proof, f"{entry.seconds:.1f}")
    table.add_row("all steps", "", f"{sum(entry.seconds for entry in entries):.1f}")
    out().print(table)
    say(_comparison(entries))
    note(f"Folders, figures and steps.json are in {folder}. Run again: what is done is taken over.")


def _comparison(entries: list[Entry]) -> str:
    """Whether the experts were worth it, whichever way it fell."""
    from ..demo.steps import DENSE_TRAINED, MOE_TRAINED

    reached = {entry.name: entry.figures.get("perplexity_after", 0.0) for entry in entries}
    experts, control = reached[MOE_TRAINED], reached[DENSE_TRAINED]
    change = 100 * (experts - control) / control
    return (
        f"Held-out perplexity after the same training: {experts:,.2f} with experts, {control:,.2f} for the "
        f"dense control ({change:+.1f}%; lower is better)."
    )
