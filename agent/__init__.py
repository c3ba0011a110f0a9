"""The program on the device."""

from agent.deferred import defer

# 2 MB of a daemon's memory and half of one of a worker's; who imports them in vain: `dataclasses` (inspect),
# `urllib.parse` (ipaddress), paho (urllib.request, uuid), `logging` (traceback), `email` (calendar), NumPy (the others)
defer(
    "calendar",
    "inspect",
    "ipaddress",
    "pickle",
    "platform",
    "shutil",
    "tempfile",
    "tokenize",
    "traceback",
    "urllib.request",
    "uuid",
)
