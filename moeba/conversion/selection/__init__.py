"""What may leave a folder: which side files travel, and that no secret, link, foreign code or local path does."""

from ...modeling.folders import leads_out
from .foreign_code import ENTRIES, drop_foreign_code, foreign_entries, names_foreign_code
from .links import what_it_is
from .private_paths import names_only, scrub_records, scrub_tokenizer
from .secrets import secret_in, secret_name
from .side_files import HUB_PATTERNS, LeftOut, SideFiles, is_code, refuse, select_side_files

__all__ = [
    "ENTRIES",
    "HUB_PATTERNS",
    "LeftOut",
    "SideFiles",
    "drop_foreign_code",
    "foreign_entries",
    "is_code",
    "leads_out",
    "names_foreign_code",
    "names_only",
    "refuse",
    "scrub_records",
    "scrub_tokenizer",
    "secret_in",
    "secret_name",
    "select_side_files",
    "what_it_is",
]
