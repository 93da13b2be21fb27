"""What SEND may refuse, in words."""

from __future__ import annotations

import errno
from typing import Final

HINTS: Final = {
    errno.ESRCH: "nobody owns that name; 'kdbusctl list' shows who is there, 'kdbusctl wait' waits for a name",
    errno.ENXIO: "no connection with that id takes messages; 'kdbusctl list' shows who is there",
    errno.EPERM: "the policy does not allow to talk to it",
    errno.EADDRNOTAVAIL: "only an activator owns the name; without --no-auto-start it would start the service",
    errno.EMSGSIZE: "the payload is larger than 2 MiB; send it with --memfd",
    errno.EXFULL: "the receiver has no room in its pool for it; send it with --memfd",
    errno.ENOBUFS: "the receiver's queue or your share of it is full; try again when it has read",
    errno.ECONNRESET: "one of the two connections has ended",
    errno.EPIPE: "the other side went away, or dropped the request, without an answer",
    errno.ETIMEDOUT: "no reply in time; --timeout sets how long to wait",
    errno.EREMOTEIO: "the reply could not be delivered",
}
"""By errno."""
