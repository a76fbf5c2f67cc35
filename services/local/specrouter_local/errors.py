"""The one exception whose text the command shows to its user."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can act on. The command prints it, without a traceback, and exits with 1."""
