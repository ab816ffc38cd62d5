"""What can go wrong between here and the Hub, each in a line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_delta.errors import HubError
from mlx_delta.hub.names import HubName


def unreachable(error: Exception) -> bool:
    """Whether the Hub did not answer at all, because it was told not to be asked or for lack of a network."""
    from huggingface_hub import errors

    transport = errors.HTTPError  # of httpx or httpx2, whichever this version of the library uses
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, transport))


@contextmanager
def told(name: HubName) -> Iterator[None]:
    """A block whose errors of huggingface_hub, and of a full disk, become HubError."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        text = _text(name, error)
        if text is None:
            raise
        raise HubError(f"{name}: {text}") from error


def _text(name: HubName, error: Exception) -> str | None:
    from huggingface_hub import constants, errors, get_token

    hub = constants.ENDPOINT
    logged_in = get_token() is not None
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        rest = "with the account of your token" if logged_in else f"then {log_in}"
        return f"expected access to this gated model, found none: accept its terms at {hub}/{name.repo}, {rest}"
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "your token does not show you a private one" if logged_in else f"for a private one {log_in}"
        return f"expected a directory here or a model on {hub}, found neither ({private})"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"expected a branch, tag or commit of {hub}/{name.repo}, found no {name.revision}"
    if isinstance(error, errors.HFValidationError):
        return "expected a model directory, or org/name of a model on the Hub, found neither"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"expected the model in {constants.HF_HUB_CACHE}, found it missing, and HF_HUB_OFFLINE is set"
    if isinstance(error, errors.HfHubHTTPError):
        return _answer(error.response.status_code, hub, logged_in)
    if unreachable(error):
        return (
            f"expected an answer from {hub}, found {_reason(error)}: check the network, HTTPS_PROXY and HF_ENDPOINT, "
            "and run it again (what has arrived is kept)"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{constants.HF_HUB_CACHE}: the disk is full: free some, or set HF_HOME to another, and run it again"
    return None


def _answer(status: int, hub: str, logged_in: bool) -> str:
    if status == 401:
        return (
            f"expected a valid token, found one that {hub} refuses: set HF_TOKEN, or `hf auth login`"
            if logged_in
            else (f"expected to be let in by {hub}, found 401: log in with `hf auth login`, or set HF_TOKEN")
        )
    if status == 403:
        return f"expected to be let in by {hub}, found 403: your token lacks the permission to read this model"
    if status == 429:
        return f"expected an answer from {hub}, found 429, too many requests: wait some minutes, or set HF_TOKEN"
    return f"expected an answer from {hub}, found {status}: try again later"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
