"""Run a function in a child process: as another user, or with a fatal signal or exit."""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

PATIENCE = 240.0  # seconds that a child may take


class Fatal(Exception):  # noqa: N818 - what a test may well expect
    """The child was ended by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def forked(play: Callable[[], Any], *, uid: int | None = None) -> Any:
    """Run `play` in a child as user `uid` without groups.  Returns its result; raises its exception, or Fatal."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # The only other thread of the test process sleeps: nothing can be torn.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            faulthandler.disable()
            os.close(reading)
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            try:
                answer = pickle.dumps((True, play()))
            except Exception as error:
                traceback.print_exc()
                sys.stderr.flush()
                answer = pickle.dumps((False, error))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    answer = b""
    with os.fdopen(reading, "rb") as pipe:
        while select.select([pipe], [], [], PATIENCE)[0]:
            more = os.read(pipe.fileno(), 1 << 16)
            answer += more
            if not more:
                break
        else:
            os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        raise Fatal(os.WTERMSIG(status))
    good, value = pickle.loads(answer)
    if not good:
        raise value
    return value
