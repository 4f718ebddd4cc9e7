"""The card and the Hub: what a person wrote there is not lost to a push, and what it would refuse is not sent."""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, get_session
from huggingface_hub.utils import hf_raise_for_status

_GENERATED = re.compile(r"^<!-- moeba:start -->.*^<!-- moeba:end -->", re.MULTILINE | re.DOTALL)
_REMEMBERED = re.compile(r"^<!-- moeba:metadata (.*) -->\r?$", re.MULTILINE)


def adopt_card(path: Path, on_hub: str | None) -> tuple[str, ...]:
    """Choose the card to renew: the one at `path`, unless only the one on the Hub has words of a person.

    Returns what a person should know: that words on the Hub give way to others.
    """
    theirs = _own_words(on_hub) if on_hub else None
    if not on_hub or not theirs:
        return ()
    ours = _own_words(path.read_text(encoding="utf-8")) if path.is_file() else None
    if ours == theirs:
        return ()
    if ours:
        return ("the card on the Hub has words of its own, which those of the folder's card replace",)
    path.write_text(on_hub, encoding="utf-8", newline="")
    return ()


def validate_card(path: Path, api: HfApi) -> None:
    """Ask the Hub that is pushed to whether it takes the card: `ModelCard.validate` of huggingface_hub 1 asks
    the public one, whatever the endpoint.

    Raises:
        HfHubHTTPError: the card's metadata is refused.
    """
    answer = get_session().post(
        f"{api.endpoint}/api/validate-yaml",
        json={"repoType": "model", "content": str(ModelCard.load(path))},
        headers={"Accept": "text/plain"},
    )
    hf_raise_for_status(answer)


def _own_words(text: str) -> tuple[str, str] | None:
    """Text and metadata that a person wrote into a card; None where there is nothing but what was generated."""
    card = ModelCard(text, ignore_metadata_errors=True)
    metadata = card.data.to_dict()
    if remembered := _REMEMBERED.search(text):
        generated = json.loads(remembered[1])
        gone = dict.fromkeys(generated.keys() - metadata.keys())
        metadata = {k: v for k, v in metadata.items() if generated.get(k) != v} | gone
    words = _GENERATED.sub("", card.text).strip()
    return (words, json.dumps(metadata, sort_keys=True, default=str)) if words or metadata else None
