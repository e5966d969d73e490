"""The errors that a program shows as one sentence."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user's, or something of theirs that cannot be used; the message is the one sentence to show.

    It names what, where, the value and the remedy. `run_program` prints it and ends with exit code 2. Every error class
    of the project for such a mistake descends from this one, so that a ValueError of any other kind is a
    bug and keeps its traceback.
    """

    exit_code = 2


class ProgramError(RuntimeError):
    """A program that cannot go on, for no mistake of the user's; the message is the sentence to show."""

    exit_code = 1


class BenchmarkError(UserError):
    """A measurement that cannot be made; the message is one sentence for the user."""
