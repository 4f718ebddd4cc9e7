"""One operation on its way from a plan to a published folder: write, prove, publish."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from ..configuration import MoebaConfig
from ..library.notices import say_untested
from ..modeling.code_files import code_files
from ..modeling.services import provided
from .certificate import Certificate, CertificateError, certify_folders
from .checkpoint import Checkpoint
from .companions import check_companions
from .destination import check_apart, check_free, partial_folder
from .hashes import hashing
from .inputs import Inputs
from .json_files import read_json
from .paths import resolved
from .plan import Plan
from .provenance import CERTIFICATE_FILE, OWN_FILES, describe_source, read_history, write_provenance
from .selection import (
    LeftOut,
    SideFiles,
    check_read,
    drop_foreign_code,
    names_only,
    refuse,
    scrub_companions,
    scrub_records,
    secret_in,
    select_side_files,
)
from .shards import parse_size
from .weight_files import PICKLE_INDEX, SAFE_INDEX
from .writing import Progress, WriteReport, write_checkpoint


class RunOptions(TypedDict, total=False):
    """What every operation lets its user say, as keyword arguments; see `Run`."""

    certificate: bool
    overwrite: bool
    dry_run: bool
    max_shard_size: int | str
    progress: Progress | None


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        certificate: prove that the function was kept, or measure by how much it was not.
        overwrite: replace a checkpoint at the destination.
        dry_run: plan only; no tensor is read and nothing is written.
        max_shard_size: bytes of one weight file, or a text such as "5GB".
        progress: called as `progress(done_bytes, total_bytes, what)`.
    """

    certificate: bool = True
    overwrite: bool = False
    dry_run: bool = False
    max_shard_size: int | str = "5GB"
    progress: Progress | None = None

    def __post_init__(self) -> None:
        # Every operation takes its options before it opens anything: what fails later is read with this in mind.
        say_untested()
        parse_size(self.max_shard_size)


@dataclass(frozen=True)
class Origin:
    """A checkpoint that an operation reads, as its user named it."""

    checkpoint: Checkpoint
    given: str
    revision: str | None = None

    def describe(self) -> dict[str, Any]:
        return describe_source(self.checkpoint, self.given, self.revision)


@contextmanager
def _leftovers_told(destination: Path) -> Iterator[None]:
    """Say with a refusal in the middle of the work what it leaves behind, and what that is in the way of."""
    try:
        yield
    except ValueError as error:
        folder = partial_folder(resolved(destination))
        text = str(error).rstrip(".")
        if folder.exists() and str(folder) not in text:
            error.args = (
                f"{text}. What was written stays in {folder}: the same run continues there, any other one needs it "
                "deleted or overwritten",
            )
        raise


def check_start(origins: Sequence[Origin], destination: str | Path, options: Run) -> None:
    """Refuse a destination that would damage something, or that is taken, before any work is done.

    Raises:
        ValueError: see `check_destination`; it may be none of the origins, nor inside or around one.
    """
    for origin in origins:
        check_apart(origin.checkpoint.folder, destination)
    folders = [origin.checkpoint.folder for origin in origins]
    check_free(resolved(destination), options.overwrite, folders)


@dataclass(frozen=True)
class Result:
    """What an operation did. `report` and `certificate` are None after a dry run.

    `gap` holds the figures of an operation that does not keep the function. `left_out` names the files of the source,
    or entries in them, that did not go along.
    """

    folder: Path
    plan: Plan
    report: WriteReport | None = None
    certificate: Certificate | None = None
    gap: dict[str, Any] | None = None
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What the end of an operation found: a certificate, or a measured gap."""

    certificate: Certificate | None = None
    gap: dict[str, Any] | None = None


@dataclass
class Job:
    """
    Attributes:
        plan: what is written.
        origins: what is read. Tokenizer and side files come from the first.
        destination: the folder to appear.
        recipe: the operation's arguments, for the record.
        save_config: writes config.json, and what else belongs to the format, into the folder.
        conclude: `folder -> Outcome`, the proof or the measurement; default: a certificate beside the first origin.
        lossy: the operation does not keep the function.
        brings_tokenizer: `save_config` writes another tokenizer than the first origin's, made to fit.
    """

    plan: Plan
    origins: Sequence[Origin]
    destination: Path
    recipe: dict[str, Any]
    save_config: Callable[[Path], None]
    conclude: Callable[[Path], Outcome] | None = None
    lossy: bool = False
    brings_tokenizer: bool = False
    _left_out: list[LeftOut] = field(default_factory=list, init=False)

    def run(self, options: Run) -> Result:
        """Write, prove and publish; nothing appears at the destination unless all of it succeeds.

        Raises:
            ValueError: the destination will not do, or a source changed meanwhile.
            CertificateError: the proof failed.
        """
        rows = None if self.brings_tokenizer else self.plan.target_config.get("vocab_size")
        check_companions(self.origins[0].checkpoint.folder, rows)
        for origin in self.origins:
            read = origin.checkpoint
            check_read(read.folder, [path.name for path in read.weight_files])
        side_files = self._side_files()
        self._left_out = list(side_files.left_out)
        if options.dry_run:
            return Result(self.destination, self.plan, left_out=side_files.left_out)
        check_start(self.origins, self.destination, options)
        self.plan.check_equal()
        fingerprints = [origin.checkpoint.fingerprint() for origin in self.origins]
        outcome = Outcome()

        def finish(folder: Path) -> None:
            nonlocal outcome
            for origin, fingerprint in zip(self.origins, fingerprints, strict=True):
                if origin.checkpoint.fingerprint() != fingerprint:
                    raise ValueError(f"{origin.checkpoint.folder} changed while it was read: run again")
            self._write_companions(folder, side_files)
            if options.certificate:
                outcome = (self.conclude or self._certify)(folder)
            if outcome.certificate is not None:
                outcome.certificate.target["path"] = self.destination.name
                if outcome.certificate.verdict != "verified":
                    raise CertificateError(outcome.certificate)
                outcome.certificate.save(folder / CERTIFICATE_FILE)
                scrub_records(folder, (CERTIFICATE_FILE,))
            if (services := provided()) is not None:
                services.write_card(folder)

        weights = (path for origin in self.origins for path in origin.checkpoint.weight_files)
        with _leftovers_told(self.destination), hashing(weights):
            report = write_checkpoint(
                self.plan.recipes,
                self.plan.source,
                self.destination,
                digest=self.plan.digest(
                    "\n".join(fingerprints), {**self.recipe, "certificate": options.certificate}
                ),
                finish=finish,
                max_shard_size=options.max_shard_size,
                overwrite=options.overwrite,
                progress=options.progress,
                inputs=sum((origin.checkpoint.inputs for origin in self.origins), Inputs(())),
                origins=[origin.checkpoint.folder for origin in self.origins],
            )
        left_out = tuple(self._left_out)
        return Result(self.destination, self.plan, report, outcome.certificate, outcome.gap, left_out)

    def _side_files(self) -> SideFiles:
        """What of the first origin goes along: facts about that one folder do not."""
        first = self.origins[0].checkpoint
        own = {*OWN_FILES, *(path.name for path in first.weight_files), SAFE_INDEX, PICKLE_INDEX}
        if first.config.get("model_type") == MoebaConfig.model_type:
            own |= set(code_files())  # written anew, or of no use to a native model
        return select_side_files(first.folder, own)

    def _write_companions(self, folder: Path, side_files: SideFiles) -> None:
        """Everything but weights and proof."""
        first = self.origins[0].checkpoint
        for path in side_files.files:
            (folder / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(first.folder / path, folder / path)
        self._left_out += drop_foreign_code(folder)
        scrub_companions(folder)
        self.save_config(folder)
        if read_json(folder / "config.json").get("model_type") != MoebaConfig.model_type:
            self._left_out += drop_foreign_code(folder, ("config.json",))
        scrub_records(folder, ("config.json",))
        write_provenance(
            folder,
            self.plan.operation,
            [origin.describe() for origin in self.origins],
            names_only(self.recipe),
            names_only(self.plan.notes),
            names_only(read_history(first.folder)),
            lossy=self.lossy,
        )
        # Such as in the comments of a recipe: said before it is proven, and never published.
        written = [folder / name for name in OWN_FILES if (folder / name).is_file()]
        refuse(folder, [f"{path.name} ({reason})" for path in written if (reason := secret_in(path))])

    def _certify(self, folder: Path) -> Outcome:
        return Outcome(certify_folders(self.origins[0].checkpoint.folder, folder))
