"""The kinds of `Rejected` that the HTTP API tells apart by status."""

from skerry.errors import Rejected


class Forbidden(Rejected):
    """The sender has no right to it (403)."""


class Unknown(Rejected):
    """There is no such thing (404)."""


class Conflict(Rejected):
    """It does not fit the present state: look at it again, then decide (409)."""


class TooMany(Rejected):
    """It came too often (429): wait, then try again."""
