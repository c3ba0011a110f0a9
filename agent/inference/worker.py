"""`python -P -m agent.inference.worker FD`: one model in a process of its own, asked over a socket by
`agent.inference.workers`.

A native crash, a hang or a memory bomb of the model ends this process and not the agent. What is asked:
`agent.inference.frames`; what the model does with it: `agent.inference.loaded`. It ends with the socket. Whatever is
not foreseen here ends the process, which is a crash like any other.
"""

import json
import os
import resource
import select
import signal
import socket
import sys
import threading
from typing import Any

from agent.inference.frames import ROW_NUMBER, Answer, Request, Status, Verb, receive_request, send_answer
from agent.inference.loaded import AtFault, Model, NoInput, OpenSession
from skerry.errors import Broken, Rejected
from skerry.runtimes.confined import confine
from skerry.runtimes.session import open_session
from skerry.wire import codec
from skerry.wire.manifest import Manifest


class Desk:
    """Answers requests, one after the other."""

    def __init__(self, opening: OpenSession) -> None:
        self._opening = opening
        self._model: Model | None = None

    def answer(self, request: Request) -> Answer:
        """Answer one request."""
        try:
            return self._answer(request)
        except Rejected as error:
            return _refusal(Status.REFUSED, error)
        except NoInput as error:
            return _refusal(Status.NO_INPUT, error)
        except AtFault as error:
            return _refusal(Status.AT_FAULT, error)
        except (Broken, OSError) as error:
            return _refusal(Status.BROKEN, error)
        except MemoryError:
            return _refusal(Status.REFUSED, "expected a model that fits the memory, got one that does not")

    def _answer(self, request: Request) -> Answer:
        verb, head, body, sample = request
        if verb == Verb.LOAD:
            return self._load(json.loads(head), bytes(body))
        model = self._model
        if model is None:
            raise Rejected("expected a model to be loaded first, got none")
        if verb == Verb.NEXT:
            return model.next(ROW_NUMBER.unpack(body)[0], sample=sample)
        if verb == Verb.ROW:
            return model.row(body, sample=sample)
        if verb == Verb.INFER:
            return model.infer(head, body, sample=sample)
        try:
            return model.replay(keep=bool(head))
        except (AtFault, NoInput) as error:
            # golden inputs are good by definition
            raise Rejected(str(error)) from error

    def _load(self, given: dict[str, Any], manifest: bytes) -> Answer:
        if given.get("limits"):
            confine(given["limits"])
        self._model = Model(codec.decode(Manifest, manifest), given, self._opening)
        return self._model.loaded()


def _refusal(status: Status, reason: Exception | str) -> Answer:
    return Answer(status, {"reason": str(reason)[:1000]})


def serve(wire: socket.socket, opening: OpenSession) -> None:
    """Answer until the other end closes."""
    desk = Desk(opening)
    while (request := receive_request(wire)) is not None:
        send_answer(wire, desk.answer(request))


def run(opening: OpenSession) -> None:
    """Be the program: the test suite's workers that crash and hang are this with another way to open a session."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # whoever stops the agent may stop us with it; we end when it closes the socket, after its last answer
        signal.signal(number, signal.SIG_IGN)
    # a core file would hold what the model was shown
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wire = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with, args=(wire.fileno(),), name="end", daemon=True).start()
    serve(wire, opening)


def _end_with(descriptor: int) -> None:
    """End when the agent has, even in the middle of an inference that never does."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main() -> None:
    """Serve one model."""
    run(open_session)


if __name__ == "__main__":
    main()
