"""The calls of a mount that are not answered yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from ..base.call import Call, Installation
    from ..native._native import CData


@mypyc_attr(acyclic=True, free_list_len=1)
class DeferredCall:
    """A call that the core answers later.

    fh: its open file; tid, uid: of the blocked thread.
    """

    __slots__ = ("call", "fh", "tid", "uid")

    def __init__(self, call: Call, fh: int, tid: int, uid: int) -> None:
        self.call = call
        self.fh = fh
        self.tid = tid
        self.uid = uid


class PendingCalls:
    """deferred: the calls that the core answers later, by the unique of their request; jobs: number of jobs of the
    installer; installing: those of them that are all or none, with the place of their outcome.
    """

    __slots__ = ("deferred", "installing", "jobs")

    def __init__(self) -> None:
        self.deferred: dict[int, DeferredCall] = {}
        self.installing: list[tuple[Installation, CData]] = []
        self.jobs = 0
