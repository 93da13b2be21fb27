"""What bus directories and endpoint files have in common: the rules for their names and permission bits."""

from __future__ import annotations

from errno import EINVAL

from ..abi.constants import MAKE_ACCESS_GROUP, MAKE_ACCESS_WORLD
from ..base.errors import CommandError


def access_mode(access: int, owner: int, group: int, world: int) -> int:
    """Permission bits for MAKE flags: WORLD implies GROUP (FS-6 to FS-8)."""
    mode = owner
    if access & (MAKE_ACCESS_GROUP | MAKE_ACCESS_WORLD):
        mode |= group
    if access & MAKE_ACCESS_WORLD:
        mode |= world
    return mode


def check_uid_prefix(name: bytes, uid: int | None) -> None:
    """Names of buses and endpoints start with the maker's uid and '-' (BUS-5).  Raises CommandError(EINVAL)."""
    if uid is None or not name.startswith(b"%d-" % uid):
        raise CommandError(EINVAL, "name lacks the uid of its maker")
