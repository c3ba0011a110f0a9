"""Reads what `strace` wrote about a program: its calls, as they ended. Strict: what it cannot read fails.

    strace -f -y -xx -s LARGE -ttt -e trace=... -o FILE  PROGRAM

`-xx` makes every string hexadecimal, so that no byte of a file can be taken for strace's own punctuation; `-y` shows
the path behind a descriptor. A call that another thread interrupts comes in two lines and is put together here.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# everything that can change a file or a name, what tells at which place a write lands, and what goes out to a network
TRACED = (
    *("open", "openat", "openat2", "creat", "close", "dup", "dup2", "dup3", "lseek", "mmap", "io_uring_setup"),
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile", "copy_file_range", "splice"),
    *("ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat"),
    *("mkdir", "mkdirat", "rmdir", "mknod", "mknodat", "sendto", "sendmsg"),
)
_LINE = re.compile(r"(?P<thread>\d+) +(?P<time>\d+\.\d+) (?P<rest>.*)")
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")
# a thread that is killed on its way into a call leaves `???() = ?`
_WHOLE = re.compile(r"(?P<name>[\w?]+)\((?P<args>.*)\) += (?P<result>-?\d+|0x[0-9a-f]+|\?)(?P<tail>.*)")
_DESCRIPTOR = re.compile(r"(?P<number>-?\d+|AT_FDCWD)(?:<(?P<path>[^>]*)>(?P<deleted>\(deleted\))?)?")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_UNFINISHED = " <unfinished ...>"


class UnreadableTraceError(AssertionError):
    """The recording holds what this reader does not know: extend it, never skip it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: the lines on which it began and ended, its thread, and its arguments as strace shows them."""

    began: int
    ended: int
    thread: int
    time: float
    name: str
    args: tuple[str, ...]
    result: int
    tail: str

    @property
    def failed(self) -> bool:
        """True when it changed nothing."""
        return self.result < 0


def command(output: Path, program: Iterable[str]) -> list[str]:
    """Return the command that runs `program` and writes its calls to `output`."""
    options = ("-f", "-y", "-xx", "-ttt", "--seccomp-bpf", "-s", str(1 << 24), "-e", f"trace={','.join(TRACED)}")
    return ["strace", *options, "-o", str(output), *program]


def read_calls(*files: Path) -> Iterator[Call]:
    """Yield the calls of one run after another, in the order in which they ended, their lines numbered through.

    A call that never ended has changed nothing.
    """
    first = 0
    for file in files:
        with file.open(encoding="ascii") as lines:
            yield from _read_run(enumerate(lines, first))
        with file.open(encoding="ascii") as lines:
            first += sum(1 for _ in lines)


def _read_run(lines: Iterable[tuple[int, str]]) -> Iterator[Call]:
    begun: dict[int, tuple[int, str]] = {}
    for number, line in lines:
        found = _LINE.fullmatch(line.rstrip("\n"))
        if found is None:
            raise UnreadableTraceError(f"line {number}: expected a call, got {line[:80]!r}")
        thread, rest, began = int(found["thread"]), found["rest"], number
        if rest.startswith(("+++", "---")):
            begun.pop(thread, None)
            continue
        if rest.endswith(_UNFINISHED):
            begun[thread] = (number, rest.removesuffix(_UNFINISHED))
            continue
        resumed = _RESUMED.fullmatch(rest)
        if resumed is not None:
            began, start = begun.pop(thread)
            rest = start + resumed["rest"]
        yield _call(rest, began=began, ended=number, thread=thread, time=float(found["time"]))


def _call(text: str, *, began: int, ended: int, thread: int, time: float) -> Call:
    found = _WHOLE.fullmatch(text)
    if found is None:
        raise UnreadableTraceError(f"line {ended}: expected NAME(ARGUMENTS) = RESULT, got {text[:80]!r}")
    result = -1 if found["result"] == "?" else int(found["result"], 0)
    args = tuple(found["args"].split(", ")) if found["args"] else ()
    return Call(began, ended, thread, time, found["name"], args, result, found["tail"])


def read_string(arg: str) -> bytes:
    """Return the bytes of a string argument."""
    found = _STRING.fullmatch(arg)
    if found is None:
        raise UnreadableTraceError(f"expected a whole string in hexadecimal, got {arg[:80]!r}")
    return bytes.fromhex(found[1].replace("\\x", ""))


def read_descriptor(arg: str) -> tuple[int, str]:
    """Return a descriptor's number and the path behind it; the path is empty for a file that is deleted."""
    found = _DESCRIPTOR.fullmatch(arg)
    if found is None:
        raise UnreadableTraceError(f"expected a descriptor, got {arg[:80]!r}")
    number = -100 if found["number"] == "AT_FDCWD" else int(found["number"])
    if found["deleted"] or not found["path"]:
        return number, ""
    return number, re.sub(r"\\x([0-9a-f]{2})", lambda each: chr(int(each[1], 16)), found["path"])
