"""The control plane's endpoint of sealed blobs in a process of its own, which answers anybody:

python -m tests.blob_server HOME PORT SHA256
"""

import sys
from pathlib import Path

import uvicorn

from control_plane import director
from control_plane.api.app import create_app
from control_plane.api.proof import device_of
from control_plane.authority import ensure_server_certificate
from control_plane.plane import utc_now
from control_plane.server import open_plane


def serve_blobs(home: Path, port: int, published: str) -> None:
    """Serve one sealed blob until the process is ended."""
    plane = open_plane(home)
    app = create_app(plane)
    # nobody is enrolled here: who asks, and for what, is looked up for each device elsewhere
    app.dependency_overrides[device_of] = lambda: "of-the-tests"
    director.blobs_of = lambda *_: frozenset({published})
    certificate, key = ensure_server_certificate(plane.home.ca, host="127.0.0.1", now=utc_now())
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        lifespan="off",
        log_config=None,
        access_log=False,
    )


if __name__ == "__main__":
    serve_blobs(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
