"""A client process for tests of `kdbusfs.host`: runs Python code and replies with lines of JSON."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from typing import Any, Self

TIMEOUT = 240.0

# Runs in the child before the test's code: memory at known addresses, and `say` for replies.
PRELUDE = """
import ctypes, json, mmap, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def say(**answer):
    sys.stdout.write(json.dumps(answer) + "\\n"); sys.stdout.flush()
def memory(size, fill=b""):
    area = mmap.mmap(-1, size)
    area[:len(fill)] = fill
    areas.append(area)
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
areas = []
def tid():
    return threading.get_native_id()
"""
# Then each line of its input is an expression; the reply is its value.
LOOP = """
for line in sys.stdin:
    say(value=eval(line))
"""


class Child:
    """Runs `text` in a child; `hear` returns its replies, `ask` the value of an expression there."""

    def __init__(self, text: str = "", prefix: tuple[str, ...] = (), **options: Any) -> None:
        program = PRELUDE + text + LOOP
        self.process = subprocess.Popen(
            [*prefix, options.pop("executable", sys.executable), "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        self.pid = self.process.pid

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        assert ready, "the child does not answer"
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, expression: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self.hear()["value"]

    def end(self) -> None:
        self.process.kill()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
