"""The one error root of Skerry, and its three leaves by who must act.

Every message is one line: what was expected, what came, what to do next. No decision is ever made on message text.
"""


class SkerryError(Exception):
    """Anything Skerry refuses or cannot do; programs print it as one line and exit non-zero."""


class Rejected(SkerryError):
    """What was sent is wrong: the sender must act."""


class Unavailable(SkerryError):
    """The network or a peer did not answer: try again later."""


class Broken(SkerryError):
    """This machine cannot do it (disk, port, missing program): its owner must act."""
