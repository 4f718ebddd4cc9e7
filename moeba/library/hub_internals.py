"""Private names of huggingface_hub that Moeba reaches."""

from __future__ import annotations

from huggingface_hub import CommitOperationAdd


def is_ignored_by_hub(addition: CommitOperationAdd) -> bool:
    """Whether the repository's .gitignore would leave a file out, as `preupload_lfs_files` found."""
    return getattr(addition, "_should_ignore", False)
