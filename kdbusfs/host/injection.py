"""Installs descriptors in clients: the tracer of one thread (native/inject.c)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from kdbusfs.native import _native

if TYPE_CHECKING:
    from .copies import Stores
    from .job import Job

lib = _native.lib
ffi = _native.ffi


class Tracer:
    """Traces clients for the thread that has made it; `close` when the thread ends.

    living: threads that did not stop in time, so that this one must not end yet; dead: those that cannot be reaped yet.
    """

    __slots__ = ("_dead", "_injection", "_native", "living")

    def __init__(self, fuse_fd: int) -> None:
        self._native = lib.kfs_tracer_new()
        self._injection = ffi.new("struct kfs_injection *")
        self._injection.fuse_fd = fuse_fd
        self._dead = ffi.new("int *")
        self.living = 0

    @property
    def has_unreleased(self) -> bool:
        """Whether `sweep` has something to do."""
        return bool(self._injection.held or self.living or self._dead[0])

    def sweep(self) -> None:
        """Detach from threads that did not stop in time, if they have stopped."""
        self._injection.held = 0
        self.living = lib.kfs_tracer_sweep(self._native, self._dead)

    def close(self) -> None:
        """The thread ends."""
        if self._native != ffi.NULL:
            lib.kfs_tracer_free(self._native)

    def inject(self, job: Job) -> bool:
        """Answer the ioctl of `job`, with its descriptors installed.

        Returns whether that was done; if not, nothing was, the ioctl is not answered, and `job.error` is the reason.
        """
        error = 0
        swap = -1
        if job.swap is not None:
            try:
                swap = os.open(job.swap, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as fault:
                error = fault.errno or errno.EIO
        if self._native == ffi.NULL or (swap < 0 and not job.entries):
            if swap >= 0:
                os.close(swap)
            job.error = error if self._native != ffi.NULL else errno.ENOMEM
            return False
        try:
            out, files, slots = self._fill(job)
        except BaseException:
            if swap >= 0:
                os.close(swap)
            raise
        injection = self._injection
        injection.swap = swap  # kfs_inject closes it
        failure = -lib.kfs_inject(self._native, injection)
        del out, files, slots
        job.error = failure or error
        job.installed = injection.installed
        job.swapped = bool(injection.swapped)
        return bool(injection.answered)

    def _fill(self, job: Job) -> tuple[object, object, object]:
        """Fill the native description of the job; returns the objects that have to stay alive until it is done."""
        injection = self._injection
        out = ffi.from_buffer("unsigned char[]", job.out)
        files = ffi.new("int[]", [fd for fd, _ in job.entries])
        slots = ffi.new("int32_t *[]", [slot for _, slot in job.entries])
        injection.tid = job.tid
        injection.unique = job.unique
        injection.result = job.result
        injection.out = out
        injection.out_len = len(job.out)
        injection.count = len(job.entries)
        injection.files = files
        injection.slots = slots
        injection.swapped_node = job.swapped_node
        injection.flags_address = job.address + job.flags_offset if job.tells_incomplete else 0
        injection.incomplete_flags = job.incomplete_flags
        injection.outcome = ffi.NULL if job.outcome is None else job.outcome
        original = ffi.from_buffer("unsigned char[]", job.original.ljust(len(job.out), b"\0"))
        injection.original = original
        injection.stores, injection.store_count, injection.slot_stores = _array(job.stores)
        injection.unswapped, injection.unswapped_count, _ = _array(job.unswapped)
        return (out, original), files, slots


def _array(stores: Stores | None) -> tuple[_native.CData, int, int]:
    return (ffi.NULL, 0, 0) if stores is None else (stores.array, stores.count, stores.slots)
