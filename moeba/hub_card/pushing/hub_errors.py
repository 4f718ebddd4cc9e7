"""What the Hub answers when it refuses or fails, in one sentence that says what to do; and when to try again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from .time_limits import is_silence, time_limits

_PASSING = frozenset((429, 500, 502, 503, 504))  # what huggingface_hub's own requests are repeated for
_WAITS = (1, 2, 4, 8)  # seconds before each further try
_SILENT_TRIES = 1  # further ones, of a request that was not answered in time
_LONGEST_WAIT = 60  # seconds; a Hub that asks for more is left to the person
# How hf_xet, which sends large files where the Hub has Xet storage, words an answer of the Hub.
_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")

Result = TypeVar("Result")


class PushError(OSError):
    """A push that the Hub or the network refused. `status` is the HTTP status, None without an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error, or one it was raised from, came with."""
    for link in _chain(error):
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return link.response.status_code
        if found := _XET_STATUS.search(str(link)):
            return int(found[1])
    return None


def is_passing(error: BaseException) -> bool:
    """Whether the same request may well succeed later: too many requests, a fault of the Hub, a broken line."""
    status = status_of(error)
    return status in _PASSING if status else _broke(error)


def persist(request: Callable[[], Result]) -> Result:
    """Call `request` until it succeeds, for requests that huggingface_hub sends only once.

    Raises:
        Exception: its last error, at once if trying again cannot help.
    """
    tries = 0
    while True:
        try:
            with time_limits():
                return request()
        except Exception as error:
            wait_or_raise(error, tries)
            tries += 1


def wait_or_raise(error: Exception, tries: int) -> None:
    """Sleep before the next try, as long as the Hub asks; raise `error` if there should be none."""
    asked = _asked_wait(error)
    most = _SILENT_TRIES if is_silent(error) else len(_WAITS)
    if not is_passing(error) or tries >= most or (asked or 0) > _LONGEST_WAIT:
        raise error
    time.sleep(_WAITS[tries] if asked is None else asked)


def explain(error: BaseException, repo_id: str, api: HfApi) -> str | None:
    """What went wrong and what to do, for an error of the Hub or the network; None for any other."""
    if isinstance(error, OfflineModeIsEnabled):
        return "huggingface_hub is offline: unset HF_HUB_OFFLINE, then push again."
    status, endpoint = status_of(error), api.endpoint
    if status is None:
        if not _broke(error):
            return None
        if is_silent(error):
            return (
                f"{endpoint} did not answer in time: push again later, files that arrived are not sent twice. "
                "HF_HUB_DOWNLOAD_TIMEOUT=seconds waits longer."
            )
        return f"The connection to {endpoint} broke: push again, files that arrived are not sent twice."
    if status == 401:
        if api.token is False or not (api.token or get_token()):
            return f"{endpoint} does not know who you are: log in with `hf auth login`, or set HF_TOKEN."
        return f"{endpoint} refuses your token: log in again with `hf auth login`, or renew HF_TOKEN."
    if status == 429:
        wait = _asked_wait(error)
        when = f"in {wait} seconds" if wait else "in a few minutes"
        return f"{endpoint} is getting too many requests from you (429): push again {when}."
    if status >= 500:
        return f"{endpoint} has a fault of its own ({status}): push again later, files that arrived are not sent twice."
    if status == 404 and any("/xet-write-token/" in str(link) for link in _chain(error)):
        return f"{endpoint} has no Xet storage: set HF_HUB_DISABLE_XET=1, then push again."
    sentence = _SENTENCES.get(status)
    if sentence is None:
        return f"{endpoint} refuses the push ({status}): {_own_words(error)}"
    return sentence.format(repo=repo_id)


_SENTENCES = {
    402: "{repo} needs more space than its owner's plan has (402): free some, or change the plan.",
    403: (
        "Your token may not write to {repo} (403): use one with the right to write, or propose the model as a "
        "pull request (--pr)."
    ),
    404: "{repo}, or the branch, does not exist or is hidden from you (404): check both names and your token.",
    409: "Somebody else is changing {repo} at this moment (409): push again; if this stays, take another name.",
    412: "Somebody else committed to {repo} at this moment (412): look at their commit, then push again.",
    413: (
        "{repo} does not take files of this size or number (413): move what is not needed to load the model out "
        "of the folder."
    ),
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _broke(error: BaseException) -> bool:
    """Whether no proper answer arrived: no connection, a cut one, or a page of a proxy in place of JSON."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, json.JSONDecodeError) or any(
        isinstance(link, HTTPError | ConnectionError | TimeoutError) for link in _chain(error)
    )


def is_silent(error: BaseException) -> bool:
    """Whether the Hub took a request and did not answer in time."""
    return any(is_silence(link) for link in _chain(error))


def _asked_wait(error: BaseException) -> int | None:
    """The seconds of a Retry-After header."""
    for link in _chain(error):
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            value = link.response.headers.get("Retry-After", "").strip()
            return int(value) if value.isdigit() else None
    return None


def _own_words(error: BaseException) -> str:
    for link in _chain(error):
        if isinstance(link, HfHubHTTPError):
            return " ".join((link.server_message or str(link)).split())
    return " ".join(str(error).split())
