"""The root of the error family; it lives in the lowest layer so that every layer can raise it.

`align.errors` re-exports all of it: import from there outside `feedback` and `reward`. Each class
also inherits a standard exception, names the culprit, what was expected and the fix, and carries
the exit status of the command it ends (docs/cli.md lists them).
"""

from __future__ import annotations

from dataclasses import dataclass


class AlignError(Exception):
    """Base of all errors raised on purpose by Align. `exit_code` is the CLI's exit status."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input: where it is, what is wrong, how to mend it."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" Fix: {self.fix}" if self.fix else "")


class DataError(AlignError, ValueError):
    """A data file or row cannot be used; the message names file and line."""

    exit_code = 3


class StoreError(DataError):
    """A feedback store cannot be opened, read or written; the message names its URL."""


class MissingDependencyError(AlignError, ImportError):
    """An optional package is needed; the message holds the command that installs it."""

    exit_code = 9


class LabelStudioError(AlignError):
    """A Label Studio server, or a project on it, cannot be used."""

    exit_code = 10
