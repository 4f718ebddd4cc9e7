"""What may leave a folder: which side files travel, and that no secret, link, foreign code or local path does."""

from ...modeling.folders import leads_out
from .foreign_code import ENTRIES, drop_foreign_code, foreign_entries, names_foreign_code
from .links import what_it_is
from .private_paths import names_only, scrub_card, scrub_companions, scrub_records
from .secrets import secret_in, secret_name
from .side_files import HUB_PATTERNS, LeftOut, SideFiles, check_read, is_code, refuse, select_side_files

__all__ = [
    "ENTRIES",
    "HUB_PATTERNS",
    "LeftOut",
    "SideFiles",
    "check_read",
    "drop_foreign_code",
    "foreign_entries",
    "is_code",
    "leads_out",
    "names_foreign_code",
    "names_only",
    "refuse",
    "scrub_card",
    "scrub_companions",
    "scrub_records",
    "secret_in",
    "secret_name",
    "select_side_files",
    "what_it_is",
]
