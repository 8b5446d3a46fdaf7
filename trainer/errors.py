"""The two ways a command can fail that are not a bug, and the exit code each one gets."""

from __future__ import annotations


class UserError(Exception):
    """The user's input is wrong: one sentence with the field, the value, what is allowed and the fix; exit code 2."""

    exit_code = 2


class MachineFault(Exception):
    """The machine failed (disk full, folder read-only, worker lost): one sentence; exit code 1."""

    exit_code = 1
