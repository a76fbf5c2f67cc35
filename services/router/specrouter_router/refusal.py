"""Why a request is refused, in one form for both interfaces."""

from __future__ import annotations

RETRY_AFTER_S = {429: 1, 503: 1}  # by status: when to try again


class RefusedError(Exception):
    """A request that is not served. ``field`` is the part of the request that is wrong, if one is.

    ``status`` is the HTTP status: 400 bad value, 404 no such thing, 409 taken, 413 too large, 429 too many at once,
    500 our fault, 502 a level's fault, 503 not now, 504 no answer in time.
    """

    def __init__(self, message: str, *, status: int = 400, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.field = field
        self.code = code


class InvalidError(RefusedError):
    """A value that can't be used; the message begins with the field's name."""

    def __init__(self, field: str, message: str, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(f"{field}: {message}", status=status, field=field, code=code)


def busy(bound: int) -> RefusedError:
    """The admission bound is reached."""
    return RefusedError(f"{bound} sequences are running already; try again", status=429, code="too_many_sequences")


def not_ready(why: str) -> RefusedError:
    """The router can't take requests now."""
    return RefusedError(why, status=503, code="not_ready")


def taken_over(why: str) -> RefusedError:
    """This router does not own the sequence any more."""
    return RefusedError(f"{why}; attach to go on", status=409, code="taken_over")


def moved() -> RefusedError:
    """This router is being drained."""
    return RefusedError("this router is shutting down; attach to another to go on", status=503, code="moved")
