"""Descriptors that keep a bus or a custom endpoint alive."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import TypeVar

from ..abi import commands as k
from ..abi.v3 import constants as c
from ..abi.v3 import layouts
from ..abi.v3.items import RawItem, make_item
from . import encode, raw
from .dialect import DIALECTS, Dialect
from .encode import Policy
from .raw import check

_Self = TypeVar("_Self", bound="_Owner")


def own_name(name: str) -> str:
    """`name` with the prefix UID- (the effective uid), which names of buses and endpoints must have."""
    return f"{os.geteuid()}-{name}"


class _Owner:
    """A descriptor that keeps a bus or endpoint alive: its last close ends it.

    fd; name: of the bus or endpoint; path: of its endpoint file, for `Connection`; family: the ABI it was made with.
    """

    def __init__(self, system: raw.System, fd: int, name: str, path: str, family: str = "v3") -> None:
        self._system = system
        self.fd = fd
        self.name = name
        self.path = path
        self.family = family

    def fileno(self) -> int:
        return self.fd

    def __fspath__(self) -> str:
        return self.path

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self._system.close(fd)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BusOwner(_Owner):
    """A bus.  `directory` contains its endpoints; `path` is the default endpoint."""

    @property
    def directory(self) -> str:
        return os.path.dirname(self.path)


class EndpointOwner(_Owner):
    """A custom endpoint."""

    def update(self, policy: Policy = (), *, items: Iterable[RawItem] = ()) -> None:
        """Replace its whole policy (EINVAL, EEXIST)."""
        item_bytes = encode.policy_items(policy) + encode.more_items(items)
        dialect = DIALECTS[self.family]
        command = dialect.command(k.ENDPOINT_UPDATE, item_bytes)
        error, _ = raw.issue(self._system, self.fd, dialect.number(k.ENDPOINT_UPDATE), command)
        check(error, "ENDPOINT_UPDATE")


def _make(system: raw.System, path: str, dialect: Dialect, kind: int, access: int, items: bytes, name: str) -> int:
    fd = system.open(path)
    try:
        error, _ = raw.issue(system, fd, dialect.number(kind), dialect.command(kind, items, flags=access))
        check(error, name)
    except BaseException:
        system.close(fd)
        raise
    return fd


def make_bus(
    root: str | os.PathLike[str],
    name: str,
    *,
    bloom: tuple[int, int] = (64, 1),
    access: int = 0,
    attach_recv: int | None = None,
    attach_send: int | None = None,
    prefix: bool = True,
    items: Iterable[RawItem] = (),
    family: str = "v3",
    system: raw.System = raw.LINUX,
) -> BusOwner:
    """Make a bus in the domain mounted at `root`.  Raises OSError.

    name: gets the uid prefix unless `prefix` is False.  bloom: bytes of a filter, bits for each element.
    access: MAKE_ACCESS_GROUP, MAKE_ACCESS_WORLD.
    attach_recv: ATTACH_* that each connection must agree to send, only for "v3".  attach_send: ATTACH_* of the maker
    that others may see.  items: more items, as (type, payload).  family: as for `Connection`; connections of any
    family can use the bus.
    """
    name = own_name(name) if prefix else name
    item_bytes = encode.string_item(c.ITEM_MAKE_NAME, name)
    item_bytes += make_item(c.ITEM_BLOOM_PARAMETER, layouts.BLOOM_PARAMETER.pack(*bloom))
    if attach_recv is not None:
        item_bytes += encode.u64_item(c.ITEM_ATTACH_FLAGS_RECV, attach_recv)
    if attach_send is not None:
        item_bytes += encode.u64_item(c.ITEM_ATTACH_FLAGS_SEND, attach_send)
    item_bytes += encode.more_items(items)
    root = os.fspath(root)
    fd = _make(
        system, os.path.join(root, "control"), DIALECTS[family], k.BUS_MAKE, access, item_bytes, "BUS_MAKE"
    )
    return BusOwner(system, fd, name, os.path.join(root, name, "bus"), family)


def make_endpoint(
    bus: str | os.PathLike[str],
    name: str,
    *,
    access: int = 0,
    policy: Policy = (),
    prefix: bool = True,
    items: Iterable[RawItem] = (),
    family: str = "v3",
    system: raw.System = raw.LINUX,
) -> EndpointOwner:
    """Make a custom endpoint beside the default endpoint `bus` (a path or a BusOwner).  Raises OSError.

    name, access, prefix, items, family: as for `make_bus`.  policy: the rights that the endpoint grants, by name.
    """
    name = own_name(name) if prefix else name
    path = os.fspath(bus)
    item_bytes = encode.string_item(c.ITEM_MAKE_NAME, name)
    if family == "v3":
        item_bytes += encode.policy_items(policy)
    item_bytes += encode.more_items(items)
    fd = _make(system, path, DIALECTS[family], k.ENDPOINT_MAKE, access, item_bytes, "ENDPOINT_MAKE")
    owner = EndpointOwner(system, fd, name, os.path.join(os.path.dirname(path), name), family)
    if family != "v3" and policy:
        # The last kdbus sets the policy by a separate command (L-28).
        try:
            owner.update(policy)
        except BaseException:
            owner.close()
            raise
    return owner
