"""Remote requests on the device: heard, judged, done one after the other on a thread of their own, answered once.

Nothing is done that is not on the allow-list, that the owner has taken off it, that came after its time, or that was
done before. A long self-test holds up other requests and nothing else. Every request and its end is in the log.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.remote.answered import ANSWERED, BEGUN, SAID, WAITING, AnsweredRing, Kept
from agent.trust.floor import show_moment
from skerry.errors import Broken, Rejected, SkerryError, Unavailable
from skerry.wire import codec
from skerry.wire.messages import Answer, Request
from skerry.wire.requests import COLLECT_LOGS, SELF_TEST, check_id, check_request

MAX_REQUEST_BYTES = 4096
MAX_WAITING = 8
MAX_ANSWER_BYTES = 48 * 1024
RETRY_S = 5.0
# done twice they do no harm, so they need not be kept
LOOKING = (COLLECT_LOGS, SELF_TEST)
Verb = Callable[[Mapping[str, Any]], dict[str, Any]]
_log = logging.getLogger("skerry.agent.requests")


class Requests:
    """One device's requests, kept in `folder`; `say` publishes an answer or raises `Unavailable`.

    While there is a `problem` with keeping them, what only looks is done and all else refused for that reason.

    `verbs` do them: each takes checked arguments and returns a result, or raises by who must act.
    """

    def __init__(
        self,
        folder: Path,
        *,
        verbs: Mapping[str, Verb],
        allowed: Sequence[str],
        say: Callable[[Answer], None],
        now: Callable[[], float] = time.time,
        problem: str = "",
    ) -> None:
        self._verbs = verbs
        self._allowed = allowed
        self._say = say
        self._now = now
        self._problem = problem
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)
        self._ring = AnsweredRing(None if problem else folder)

    def start(self) -> None:
        """Begin to do what waits."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was begun is answered at the next start."""
        self._stop.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def nudge(self) -> None:
        """A connection is there: say what could not be said."""
        self._news.set()

    def offer(self, payload: bytes) -> None:
        """Take a request in: durable when this returns. What is no request has no id to answer to, and is dropped.

        Raises:
            Broken: the disk refused; nothing has changed.
        """
        try:
            request = codec.decode(Request, payload, limit=MAX_REQUEST_BYTES)
            check_id(request.id)
        except Rejected as error:
            _log.warning("a request was dropped: %s", error)
            return
        with self._lock:
            known = self._ring.find(request.id)
            if known is not None:
                self._repeat(known)
            else:
                self._keep_new(request)
        self._news.set()

    def _repeat(self, known: Kept) -> None:
        _log.info("request %s (%s) came again: %s", known.request.id, known.request.verb, known.step)
        if known.step == SAID and known.answer is not None:
            self._ring.keep(known.answered(known.answer.result, ok=known.answer.ok))

    def _keep_new(self, request: Request) -> None:
        shown = " ".join(f"{key}={value}" for key, value in sorted(request.args.items()))[:200]
        _log.info("request %s of %s: %s %s", request.id, request.asked_by or "the operator", request.verb[:40], shown)
        kept, refusal = self._ring.new(request), self._refusal(request)
        if not refusal and len(self._ring.at(WAITING, BEGUN)) >= MAX_WAITING:
            refusal = f"expected fewer than {MAX_WAITING} requests that wait, got another; ask again later"
        if refusal:
            _log.warning("request %s was refused: %s", request.id, refusal)
            kept = kept.answered({"reason": refusal}, ok=False)
        self._ring.keep(kept)

    def _refusal(self, request: Request) -> str:
        """Return why it must not be done, or an empty text."""
        now = self._now()
        if request.only_repeat:
            return "nothing was done: it did not come within its time"
        if request.expires and now >= request.expires:
            return f"expected it by {show_moment(request.expires)}, got it at {show_moment(now)} by this device's clock"
        try:
            check_request(request.verb, request.args)
        except Rejected as error:
            return str(error)
        if request.verb not in self._allowed:
            allowed = ", ".join(self._allowed) or "nothing"
            return f"{request.verb}: expected what this device's owner allows ({allowed})"
        if self._problem and request.verb not in LOOKING:
            return f"{request.verb}: {self._problem}"
        return ""

    def _run(self) -> None:
        """Do and say what there is, for ever; a disk that refuses is asked again."""
        self._answer_interrupted()
        while not self._stop.is_set():
            pause = None
            try:
                self._tell()
                if self._do_next():
                    continue
            except Broken as error:
                _log.error("requests: %s", error)
                pause = RETRY_S
            self._news.wait(pause)
            self._news.clear()

    def _answer_interrupted(self) -> None:
        with self._lock:
            for kept in self._ring.at(BEGUN):
                reason = "the agent ended while it was doing this; nothing is done twice"
                self._end(kept, {"reason": reason}, ok=False)

    def _do_next(self) -> bool:
        with self._lock:
            kept = next(iter(self._ring.at(WAITING)), None)
            if kept is None:
                return False
            refusal = self._refusal(kept.request)
            if refusal:
                self._end(kept, {"reason": refusal}, ok=False)
                return True
            self._ring.keep(Kept(number=kept.number, request=kept.request, step=BEGUN))
        began = time.monotonic()
        ok, result = self._do(kept.request)
        with self._lock:
            self._end(kept, {**result, "took_s": round(time.monotonic() - began, 3)}, ok=ok)
        return True

    def _do(self, request: Request) -> tuple[bool, dict[str, Any]]:
        try:
            result = self._verbs[request.verb](check_request(request.verb, request.args))
        except SkerryError as error:
            return False, {"reason": str(error)[:1000]}
        except Exception as error:  # noqa: BLE001 -- what an operator asks for must never end the agent
            _log.exception("request %s failed", request.id)
            return False, {"reason": f"the agent failed at it ({type(error).__name__}); its log says more"}
        size = len(codec.encode(Answer(id=request.id, ok=True, result=result)))
        if size > MAX_ANSWER_BYTES:
            return False, {"reason": f"expected an answer of at most {MAX_ANSWER_BYTES} bytes, got {size}"}
        return True, result

    def _end(self, kept: Kept, result: Mapping[str, Any], *, ok: bool) -> None:
        done = kept.answered(result, ok=ok)
        try:
            self._ring.keep(done)
        except Broken as error:
            # it is done: should the power go now, the next start says that it was interrupted
            self._ring.hold(done)
            _log.error("request %s: %s", kept.request.id, error)
        reason = f": {result['reason']}" if result.get("reason") else ""
        _log.info("request %s (%s): %s%s", kept.request.id, kept.request.verb[:40], "done" if ok else "refused", reason)

    def _tell(self) -> None:
        with self._lock:
            answered = self._ring.at(ANSWERED)
        for kept in answered:
            if kept.answer is None:
                continue
            try:
                self._say(kept.answer)
            except Unavailable:
                return
            with self._lock:
                self._ring.keep(Kept(number=kept.number, request=kept.request, step=SAID, answer=kept.answer))
