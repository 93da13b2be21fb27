"""The Python client of bus1 where no mount is needed; tests/mount/test_bus1.py has the rest."""

from __future__ import annotations

import errno
import os

import pytest

import kdbusfs.bus1
from kdbusfs.bus1 import abi
from kdbusfs.client import bus1


def test_programs_find_the_client_in_the_package() -> None:
    """`from kdbusfs.bus1 import Peer`"""
    for name in bus1.__all__:
        assert getattr(kdbusfs.bus1, name) is getattr(bus1, name)
        assert name in dir(kdbusfs.bus1)
    with pytest.raises(AttributeError, match="no attribute 'Bus'"):
        _ = kdbusfs.bus1.Bus


def test_a_message_that_came_by_no_peer_has_no_slice() -> None:
    with bus1.Message(abi.MSG_NODE_RELEASE, abi.MSG_FLAG_CONTINUE, 8, 0, 0, 0, 0, abi.OFFSET_INVALID) as message:
        assert message.continues
    message.free()


def test_a_file_that_cannot_be_mapped_is_closed() -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError) as caught:
        bus1.Peer(reading)
    assert caught.value.errno in (errno.ENODEV, errno.EACCES)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(reading)
    os.close(writing)
