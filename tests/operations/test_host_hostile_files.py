"""Files of FUSE mounts: files of other kdbusfs mounts are recognized, and silent servers do not block the daemon."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from errno import EINVAL
from pathlib import Path

import pytest

from kdbusfs.base.errors import CommandError
from kdbusfs.host.host import LinuxHost
from tests.operations.host_fuse import FuseChild

pytestmark = pytest.mark.mount


def close_quietly(fd: int) -> None:
    with suppress(OSError):  # the reply of the server to FLUSH, or its end
        os.close(fd)


class ThreadCloser:
    """A thread for each descriptor."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def close_later(self, user: int, fd: int) -> None:
        self.threads.append(threading.Thread(target=close_quietly, args=(fd,), daemon=True))
        self.threads[-1].start()

    def closing(self, user: int) -> int:
        return sum(thread.is_alive() for thread in self.threads)


@pytest.fixture
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FuseChild]:
    with FuseChild(str(tmp_path), request.param) as client:
        yield client


@pytest.mark.parametrize("client", ["fuse.kdbusfs", "fuse.other", "fuse"], indirect=True)
def test_endpoint_files_of_another_mount(client: FuseChild, request: pytest.FixtureRequest) -> None:
    """SEND-16, L-60: although its mount is in the client's mount namespace alone."""
    host = LinuxHost()
    bus = request.node.callspec.params["client"] == "fuse.kdbusfs"
    table = {
        ("endpoint", os.O_RDWR): bus,
        ("endpoint", os.O_PATH): False,
        ("control", os.O_RDWR): False,
        (".kdbusfs/stats", os.O_RDONLY): False,
        (".kdbusfs", os.O_RDONLY): False,
    }
    caller = host.caller(client.pid)
    for (name, flags), expected in table.items():
        file = caller.take_file(client.open(name, flags))
        assert file.is_bus_file == expected, (name, flags)
        assert file.is_control == (bus and name == "control"), (name, flags)
        threading.Thread(target=close_quietly, args=(file.fd,), daemon=True).start()
    host.close()


@pytest.mark.parametrize("client", ["fuse.other"], indirect=True)
def test_the_own_mount_is_known_by_its_device(client: FuseChild) -> None:
    host = LinuxHost()
    file = host.caller(client.pid).take_file(client.open("endpoint", os.O_RDWR))
    device = file.facts.device
    before = file.is_bus_file
    host.set_own_device(os.makedev(*device))
    assert (before, file.is_bus_file) == (False, True)
    control = host.caller(client.pid).take_file(client.open("control", os.O_RDWR))
    assert (control.is_bus_file, control.is_control) == (False, True)
    for one in (file, control):
        threading.Thread(target=close_quietly, args=(one.fd,), daemon=True).start()
    host.close()


@pytest.mark.parametrize("client", ["fuse.other"], indirect=True)
def test_a_silent_server_holds_up_nothing_but_the_close_of_its_own_user(client: FuseChild) -> None:
    closer = ThreadCloser()
    host = LinuxHost(closer=closer)
    fd = client.open("endpoint", os.O_RDWR)
    client.silence()
    done: list[bool] = []

    def reader() -> None:
        caller = host.caller(client.pid)
        file = caller.take_file(fd)
        assert not (file.is_bus_file or file.is_unix_socket or file.is_path)
        assert file.seals() is None
        for call in (file.size, lambda: host.watch(file, None)):
            with pytest.raises(CommandError):
                call()
        with pytest.raises(CommandError) as info:
            host.watch(file, None)
        assert info.value.errno == EINVAL
        file.close()
        done.append(True)

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    thread.join(240)
    assert done == [True]
    # close(2) waits for FLUSH, and the descriptor is accounted until then.
    closer.threads[0].join(0.2)
    assert host.descriptors.held(0) == 1
    client.end()
    closer.threads[0].join(240)
    assert host.descriptors.held(0) == 0
    host.close()
