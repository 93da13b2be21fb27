"""Explanations for the errors of SEND, by errno."""

from __future__ import annotations

import errno
from typing import Final

HINTS: Final = {
    errno.ESRCH: "nobody owns that name; 'kdbusctl list' shows the names, 'kdbusctl wait' waits for one",
    errno.ENXIO: "no connection with that id receives messages; 'kdbusctl list' shows the connections",
    errno.EPERM: "the policy does not grant TALK access",
    errno.EADDRNOTAVAIL: "only an activator owns the name; omit --no-auto-start to start the service",
    errno.EMSGSIZE: "the payload is larger than 2 MiB; use --memfd",
    errno.EXFULL: "the receiver's pool has no room for it; use --memfd",
    errno.ENOBUFS: "the receiver's queue, or your quota of it, is full; try again later",
    errno.ECONNRESET: "one of the two connections has ended",
    errno.EPIPE: "the receiver disconnected or dropped the request without a reply",
    errno.ETIMEDOUT: "no reply before the timeout; set it with --timeout",
    errno.EREMOTEIO: "the reply could not be delivered",
}
