"""kdbusctl bus1: peers, nodes, handles and queues of a real domain."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from kdbusfs.bus1 import abi
from kdbusfs.client.bus1 import Peer
from tests.conftest import DomainMount
from tests.support.ctl import as_user, check_refused, kdbusctl, refused

pytestmark = pytest.mark.mount

NOBODY = 65534


@pytest.fixture
def mount(domain_mount: DomainMount) -> str:
    return str(domain_mount.path)


def test_it_shows_all_that_there_is(mount: str) -> None:
    assert kdbusctl("bus1", "--mount", mount, "--json").json == []
    with Peer(f"{mount}/bus1") as owner, Peer(f"{mount}/bus1") as holder:
        handle = owner.transfer(0x100, holder)
        holder.send([handle], b"hello", handles=[0x200], fds=[0])
        owner.send([], b"seed", seed=True)
        first, second = kdbusctl("--mount", mount, "bus1", "--json").json
        assert (first["uid"], first["user"], first["pid"]) == (0, "root", os.getpid())
        assert first["comm"] == Path("/proc/self/comm").read_text().rstrip("\n")
        assert (first["queued"], first["slices"], first["references"], first["seed"]) == (1, 2, 2, True)
        assert first["nodes"] == [{"id": 0x100, "holders": 1, "references": 1, "destroyed": False}]
        data = {"type": "data", "destination": 0x100, "uid": 0, "bytes": 5, "handles": 1, "fds": 1}
        assert first["queue"] == [data]
        assert second["handles"] == [
            {"id": handle, "owner": first["peer"], "node": 0x100, "references": 1, "destroyed": False}
        ]
        table = kdbusctl("bus1", "--mount", mount).lines
        assert table[0].split()[:3] == ["PEER", "PID", "USER"]
        assert [line.split()[0] for line in table[1:]] == [str(first["peer"]), str(second["peer"])]
        shown = kdbusctl("bus1", "--mount", mount, str(second["peer"])).out
        assert f"HANDLE  OWNER   NODE  REFERENCES  STATE\n   {handle:#x}" in shown
        assert "NODE  HOLDERS" in shown and "QUEUED" not in shown.replace("Queued", "")
        assert kdbusctl("bus1", "--mount", mount, str(first["peer"]), "--json").json[0]["queue"] == [data]
        found = kdbusctl(
            _KDBUSCTL_COMPLETE="bash_complete", COMP_WORDS=f"kdbusctl --mount {mount} bus1 ", COMP_CWORD="4"
        )
        assert found.lines == [f"plain,{first['peer']}", f"plain,{second['peer']}"]
        owner.destroy(0x100)
        assert "destroyed" in kdbusctl("bus1", "--mount", mount, str(second["peer"])).out


def test_what_cannot_be_shown(mount: str, private_mounts: None) -> None:
    refused(3, "there is no peer 99", "bus1", "99", "--mount", mount)
    check_refused(as_user(NOBODY, "bus1", "--mount", mount), 4, f"only root may see what the peers of '{mount}' do")
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    domain = DomainMount(path, "nobus1")
    try:
        domain.wait_until_ready()
        refused(32, "has no .kdbusfs/peers", "bus1", "--mount", str(path))
    finally:
        assert domain.stop() == 0
        domain.clean_up()
        path.rmdir()


def test_many_handles_are_shown_while_others_are_served(mount: str) -> None:
    """4 KiB for each read, whatever is asked for."""
    count = 20000
    with Peer(f"{mount}/bus1") as owner, Peer(f"{mount}/bus1", map_size=abi.POOL_SIZE) as holder:
        node = owner.transfer(8, holder)
        holder.send([node], handles=range(0x1000, 0x1000 + 4 * count, 4))
        with owner.receive(timeout=60) as message:
            assert len(message.handles) == count
        fd = os.open(f"{mount}/.kdbusfs/peers", os.O_RDONLY)
        assert 1 << 12 <= len(os.read(fd, 1 << 17)) < 6000
        with pytest.raises(OSError) as caught:
            os.pread(fd, 10, 1 << 20)
        assert caught.value.errno == errno.EINVAL
        os.close(fd)
        first, second = kdbusctl("bus1", "--mount", mount, "--json").json
        assert [len(first["handles"]), len(second["nodes"])] == [count, count]
