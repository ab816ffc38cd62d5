"""Every error that this package raises on purpose: each says what is wrong in one line, "x: expected .., found ..".

All are ``ValueError`` too. Anything else that comes out, but an ``OSError``, is a bug of ours or of a caller.
"""

from __future__ import annotations


class MlxDeltaError(ValueError):
    """What a caller can act on. The kinds below say what it is about."""


class ArgumentError(MlxDeltaError):
    """An argument is wrong, or does not go with the others. The message begins with its name and a colon."""

    @property
    def argument(self) -> str:
        """Its name as Python has it, so that a command line can put its own in the place."""
        return str(self).partition(":")[0]


class ConfigError(MlxDeltaError):
    """A config.json does not describe a model that this package runs."""


class CheckpointError(MlxDeltaError):
    """A checkpoint's files are missing or damaged, or its tensors are not those of its config."""


class HubError(CheckpointError):
    """A model cannot be had from the Hub. The message says what to do."""


class TokenizerError(MlxDeltaError):
    """A tokenizer file is missing, is not valid, or is of a kind that this package does not run."""


class TemplateError(MlxDeltaError):
    """A chat template refuses the messages or is broken."""


class ConvertError(MlxDeltaError):
    """A conversion cannot be done as asked: says which file or tensor, what was expected, what was found."""


class ImatrixError(MlxDeltaError):
    """A file is no importance matrix, or not one of this model."""


class TextError(MlxDeltaError):
    """A file of text, to calibrate on or to evaluate with, cannot be used."""


class OutputError(MlxDeltaError):
    """A file or directory cannot be written as asked."""


class OutputExistsError(OutputError):
    """It is there already, and ``force`` was not given."""


class MissingPackageError(MlxDeltaError):
    """Something needs a package that is not installed; the message says how to install it."""


class NotFiniteError(MlxDeltaError):
    """Activations have left the range of their dtype: there is no next token."""


class GpuError(MlxDeltaError):
    """This machine's GPU does not compute as the kernels need it."""


class RedTests(MlxDeltaError):
    """An op differs from its reference by more than its bound: no time is worth reporting."""


class VersionError(MlxDeltaError, ImportError):
    """A package is there in a version that this one does not run with."""


class QueueFullError(MlxDeltaError):
    """As many sequences wait as may: try again when some have ended."""


class BusyError(MlxDeltaError):
    """Something that is for one thread at a time is used by two."""


class RankError(MlxDeltaError):
    """The processes that run a model together are not alike, or one of them is gone."""


class RequestError(MlxDeltaError):
    """A request to the server is refused, with this HTTP status.

    param: the field that is wrong, if one is. code: what a program can tell it by. retry_after: seconds until another
    try may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after
