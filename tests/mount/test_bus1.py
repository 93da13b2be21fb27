"""bus1 over a real mount: its file, its pools, descriptors, other processes, and the program in C."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from kdbusfs.bus1 import abi
from kdbusfs.client.bus1 import Message, Peer
from tests.conftest import DomainMount
from tests.support import features

pytestmark = pytest.mark.mount

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
HOLDERS = 1000
PATIENCE = 60.0


GCC = ("-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'kdbusfs/include'}")


def source(name: str) -> Path:
    """Of a program in C."""
    return ROOT / f"tests/support/{name}.c"


@pytest.fixture
def file(domain_mount: DomainMount) -> Iterator[Path]:
    """The file of bus1; when the test is over nothing is left of its peers."""
    yield domain_mount.path / "bus1"
    if domain_mount.process.poll() is None:
        deadline = time.monotonic() + PATIENCE
        while domain_mount.stats()["bus1"] != {"peers": 0, "users": 0} or domain_mount.stats()["memory"]:
            assert time.monotonic() < deadline, f"peers are left: {domain_mount.stats()}"
            time.sleep(0.05)
        assert domain_mount.stats()["faults"] == 0


def mounted(*options: str) -> DomainMount:
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    path.chmod(0o755)
    domain = DomainMount(path, *options)
    domain.wait_until_ready()
    return domain


def refused(number: int, call: Callable[..., object], *arguments: object, **named: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments, **named)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def got(peer: Peer) -> Message:
    message = peer.recv()
    assert message is not None
    return message


def awaited(peer: Peer) -> Message:
    """The next message, which may not be there yet."""
    return peer.receive(timeout=PATIENCE)


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where the programs in C are, built."""
    # Not below tmp_path, which other users may not enter.
    directory = Path(tempfile.mkdtemp(prefix="kdbusfs-bus1-"))
    directory.chmod(0o755)
    for name in ("bus1_api", "bus1_rounds"):
        subprocess.run(["gcc", *GCC, "-pedantic", source(name), "-o", directory / name], check=True, timeout=120)
    return directory


@pytest.mark.old_kernels("linux-6.8")
@pytest.mark.parametrize("user", [0, NOBODY])
def test_the_program_in_c(domain_mount: DomainMount, programs: Path, user: int) -> None:
    """B1-FILE-1 to B1-FILE-7, B1-GEN-1 to B1-GEN-3, B1-HAND-1 to B1-HAND-7, B1-NODE-5, B1-RECV-9, B1-FUSE-1, B1-FUSE-4,
    B1-FUSE-6: what bus1's own tests do, and more, with and without passthrough.
    """
    done = subprocess.run(
        [str(programs / "bus1_api"), str(domain_mount.path / "bus1")],
        capture_output=True,
        text=True,
        timeout=120,
        user=user,
        group=user,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert domain_mount.stats()["faults"] == 0


def test_b1_fuse_7_the_program_of_32_bits(file: Path, programs: Path) -> None:
    """B1-SEND-6: its vectors are of 8 bytes."""
    empty = ["gcc", "-m32", "-x", "c", "-", "-o", "/dev/null"]
    trial = "#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }"
    if subprocess.run(empty, input=trial, text=True, capture_output=True).returncode:
        pytest.skip("the compiler cannot build 32-bit programs")
    binary = programs / "bus1_api_32"
    subprocess.run(["gcc", "-m32", *GCC, source("bus1_api"), "-o", binary], check=True, timeout=120)
    done = subprocess.run([binary, file], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.old_kernels("linux-6.8")
def test_b1_send_2_messages_to_many(file: Path, programs: Path) -> None:
    """B1-FILE-5, B1-SEND-5: 257 peers of one process, again and again, with 16 MiB of each pool mapped."""
    done = subprocess.run([programs / "bus1_rounds", file, "100"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    measured = [tuple(line.split()[:2]) for line in done.stdout.splitlines()]
    assert measured == [
        *[("sockets", "0"), ("sockets", "1024"), ("0", "1024"), ("1", "0"), ("1", "1024")],
        *[(str(1 << number), "1024") for number in range(1, 9)],
    ]


def test_b1_file_1_found_by_name(domain_mount: DomainMount) -> None:
    """DEC 8: 0666, there by name, and not listed."""
    path = domain_mount.path / "bus1"
    found = path.stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o666, 0, 0)
    assert found.st_size == abi.POOL_SIZE
    assert os.listdir(domain_mount.path) == ["control"]
    assert path.stat().st_ino == found.st_ino


@pytest.mark.parametrize(("option", "names"), [("nobus1", ["control"]), ("bus1=listed", ["bus1", "control"])])
def test_b1_file_1_options(private_mounts: None, option: str, names: list[str]) -> None:
    domain = mounted(option)
    try:
        assert sorted(os.listdir(domain.path)) == names
        if option == "nobus1":
            refused(errno.ENOENT, os.open, domain.path / "bus1", os.O_RDWR)
        else:
            Peer(domain.path / "bus1").close()
    finally:
        assert domain.stop() == 0
        domain.clean_up()
        domain.path.rmdir()


def test_b1_lim_1_maxima_of_the_mount(private_mounts: None) -> None:
    domain = mounted("bus1_max_slices=3,bus1_max_handles=5,bus1_max_inflight_bytes=7,bus1_max_inflight_fds=9")
    try:
        with Peer(domain.path / "bus1") as peer:
            assert peer.query() == (0, 3, 5, 7, 9)
            for _ in range(3):
                peer.send([8], b"x")
            refused(errno.EDQUOT, peer.send, [8], b"x")
    finally:
        assert domain.stop() == 0
        domain.clean_up()
        domain.path.rmdir()


def test_b1_file_2_any_way_of_opening_makes_a_peer(file: Path) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_NONBLOCK):
        fd = os.open(file, flags | os.O_CLOEXEC)
        with Peer(fd) as peer:
            assert peer.recv() is None
            peer.send([8], b"self")
            assert got(peer).data == b"self"
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    refused(errno.EAGAIN, ioctl, fd, abi.CMD_RECV, bytes(abi.RECV_SIZE))
    os.close(fd)


def test_b1_file_4_no_read_and_no_write(file: Path) -> None:
    with Peer(file) as peer:
        if features.has_passthrough():
            refused(errno.EINVAL, os.read, peer.fileno(), 1)
        else:
            assert len(os.read(peer.fileno(), 1)) == 1  # docs/deviations.md
        refused(errno.EINVAL, os.write, peer.fileno(), b"x")


def test_b1_file_5_b1_fuse_2_the_map(file: Path) -> None:
    """It outlives the close, and lies behind the end beyond 2**29."""
    peer = Peer(file)
    whole = mmap.mmap(peer.fileno(), abi.POOL_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    peer.send([8], b"stays")
    message = got(peer)
    assert whole[message.offset : message.offset + 5] == b"stays"
    peer.close()
    assert whole[message.offset : message.offset + 5] == b"stays"
    assert whole[abi.POOL_SIZE - 1] == 0
    whole.close()


def test_b1_file_3_b1_cred_1_b1_fuse_8_credentials(file: Path) -> None:
    with Peer(file) as peer, Peer(file) as sender:
        handle = peer.transfer(8, sender)
        child = os.fork()
        if child == 0:
            os.setresgid(1234, 0, 0)
            os.setresuid(2345, 0, 0)
            sender.send([handle], b"child")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        message = got(peer)
        assert (message.uid, message.gid, message.pid, message.tid) == (2345, 1234, child, child)


def test_b1_file_7_b1_idea_1_a_peer_is_an_open_file(file: Path) -> None:
    """It goes with its last descriptor, wherever that is."""
    with Peer(file) as peer, Peer(file) as other:
        handle = peer.transfer(8, other)
        left, right = socket.socketpair()
        socket.send_fds(left, [b"x"], [peer.fileno()])
        copy = socket.recv_fds(right, 1, 1)[1][0]
        peer.close()
        other.send([handle], b"to the copy")
        with Peer(copy) as again:
            assert got(again).data == b"to the copy"
        assert awaited(other).type == abi.MSG_NODE_DESTROY
        refused(errno.ESHUTDOWN, other.send, [handle], b"x")
        left.close()
        right.close()


def test_b1_fuse_1_disconnect(file: Path) -> None:
    """NULL cannot be carried; a pointer to 0 does it."""
    with Peer(file) as peer:
        refused(errno.EFAULT, ioctl, peer.fileno(), abi.CMD_PEER_DISCONNECT, 0)
        refused(errno.EINVAL, ioctl, peer.fileno(), abi.CMD_PEER_DISCONNECT, struct.pack("<Q", 1))
        peer.disconnect()
        refused(errno.ESHUTDOWN, peer.disconnect)
        refused(errno.ESHUTDOWN, peer.query)


def test_b1_fuse_3_b1_hand_2_transfer_by_a_descriptor(file: Path, private_mounts: None) -> None:
    other = mounted()
    try:
        with Peer(file) as peer, Peer(file) as second, Peer(other.path / "bus1") as stranger:
            assert peer.transfer(8, second) == 0xB
            assert peer.transfer(8) == 8
            refused(errno.EOPNOTSUPP, peer.transfer, 8, stranger)
            control = os.open(file.parent / "control", os.O_RDWR | os.O_CLOEXEC)
            refused(errno.EOPNOTSUPP, peer.transfer, 8, control)
            os.close(control)
            refused(errno.EOPNOTSUPP, peer.transfer, 8, 0)
            path = os.open(file, os.O_PATH | os.O_CLOEXEC)
            refused(errno.EBADF, peer.transfer, 8, path)
            os.close(path)
            for number in (9999, 1 << 31, 1 << 32 | second.fileno()):
                refused(errno.EBADF, peer.transfer, 8, number)
            second.disconnect()
            refused(errno.ESHUTDOWN, peer.transfer, 8, second)
    finally:
        assert other.stop() == 0
        other.clean_up()
        other.path.rmdir()


def test_b1_fuse_5_a_bind_mounted_file_is_open_once_at_a_time(file: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "bound", tmp_path / "link"
    target.touch()
    link.symlink_to(file)
    subprocess.run(["mount", "--bind", str(file), str(target)], check=True)
    try:
        with Peer(target) as peer:
            refused(errno.EBUSY, os.open, target, os.O_RDWR)
            refused(errno.EBUSY, os.open, f"/proc/self/fd/{peer.fileno()}", os.O_RDWR)
            with Peer(link) as second, Peer(link) as third:
                assert second.transfer(8, third) == 0xB
        Peer(target).close()
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_b1_fuse_7_b1_send_6_unreadable_arrays(file: Path) -> None:
    """B1-FUSE-9: arrays are read from the memory of the caller."""
    with Peer(file) as peer:
        fixed = struct.pack("<10Q", 0, 8, 0, 1, 0, 0, 0, 0, 0, 0)
        refused(errno.EFAULT, ioctl, peer.fileno(), abi.CMD_SEND, fixed)
        for at in (4, 6, 8):
            members = [0] * 10
            members[at], members[at + 1] = 1 << 47, 1
            refused(errno.EFAULT, ioctl, peer.fileno(), abi.CMD_SEND, struct.pack("<10Q", *members))
        refused(errno.EFAULT, ioctl, peer.fileno(), abi.CMD_NODES_DESTROY, struct.pack("<QQQ", 0, 1 << 60, 3))
        assert peer.recv() is None


def test_b1_gen_6_threads_on_one_peer(file: Path) -> None:
    """Each message is received by one of them."""
    received: list[bytes] = []
    with Peer(file) as peer, Peer(file) as sender:
        handle = peer.transfer(8, sender)

        def work() -> None:
            limit = time.monotonic() + PATIENCE
            while len(received) < 600 and time.monotonic() < limit:
                message = peer.recv()
                if message is not None:
                    received.append(message.data)
                    peer.free(message)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(600):
            sender.send([handle], b"%d" % number)
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(map(int, received)) == list(range(600))


def test_b1_recv_9_installing_is_all_or_none(file: Path) -> None:
    """B1-FUSE-4: a process without room for all gets none, and the message stays."""
    with Peer(file) as peer:
        pipes = os.pipe()
        for _ in range(3):
            peer.send([8], b"x", fds=[*pipes, *pipes])
        child = os.fork()
        if child == 0:
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            before = os.listdir("/proc/self/fd")
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, highest + 100))
            holes = highest + 1 - len(before)
            for _ in range(holes - 1):
                os.dup(0)
            taken = len(os.listdir("/proc/self/fd"))
            try:
                peer.recv(install=True)
                os._exit(1)
            except OSError as fault:
                if fault.errno != errno.EMFILE:
                    os._exit(2)
            os._exit(0 if len(os.listdir("/proc/self/fd")) == taken else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for _ in range(3):
            message = peer.recv(install=True)
            assert message is not None and len(message.fds) == 4
            assert {os.readlink(f"/proc/self/fd/{fd}") for fd in message.fds} == {
                os.readlink(f"/proc/self/fd/{fd}") for fd in pipes
            }
            for fd in message.fds:
                os.close(fd)
        for fd in pipes:
            os.close(fd)


def test_b1_recv_9_a_client_that_cannot_be_given_descriptors(file: Path) -> None:
    """B1-FUSE-4: one that is traced gets EPERM, and receives without them."""
    script = """
import os, sys
from kdbusfs.client.bus1 import Peer
peer = Peer(sys.argv[1])
peer.send([8], b"x", fds=[0])
print("ready", flush=True)
sys.stdin.readline()
try:
    peer.recv(install=True)
    print("installed")
except OSError as fault:
    print(fault.errno)
print(peer.recv().fds)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    tracer = subprocess.Popen(
        [sys.executable, "-c", TRACER, str(child.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert tracer.stdout is not None
    assert tracer.stdout.readline() == "traced\n"
    child.stdin.write("go\n")
    child.stdin.flush()
    assert [child.stdout.readline(), child.stdout.readline()] == [f"{errno.EPERM}\n", "(-1,)\n"]
    tracer.communicate("", timeout=PATIENCE)  # before: who is traced is its tracer's to reap
    child.communicate(timeout=PATIENCE)


TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
assert libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0
print("traced", flush=True)
sys.stdin.read()
"""


def test_b1_node_10_the_owner_of_a_node_with_1000_holders_is_killed(file: Path) -> None:
    """B1-IDEA-5: each of them is told once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HOLDERS + 200), hard))
    holders = [Peer(file, map_size=mmap.PAGESIZE) for _ in range(HOLDERS)]
    ready, tell = os.pipe()
    owner = os.fork()
    if owner == 0:
        peer = Peer(file)
        for holder in holders:
            peer.transfer(8, holder)
        os.write(tell, b"x")
        signal.pause()
    assert os.read(ready, 1) == b"x"
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    for holder in holders:
        message = awaited(holder)
        assert (message.type, message.destination) == (abi.MSG_NODE_DESTROY, 0xB)
        assert holder.recv() is None
    for holder in holders:
        holder.close()
    os.close(ready)
    os.close(tell)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def live_dangerously(peer: Peer, handles: list[int]) -> None:
    """Send to all with a new node and a descriptor, receive with descriptors, give back some of it; until killed."""
    node = 0x1000
    while True:
        node += 4
        with contextlib.suppress(OSError):
            peer.send(handles, b"x" * 3000, handles=[node, *handles[:1]], fds=[0], go_on=True)
        with contextlib.suppress(OSError):
            while (message := peer.recv(install=node % 3 == 0)) is not None:
                for fd in message.fds:
                    if fd >= 0:
                        os.close(fd)
                for handle in message.handles[:1]:
                    peer.release(handle)
                message.free()
        if node % 160 == 0:
            with contextlib.suppress(OSError):
                peer.reset(flush=True)


@pytest.mark.parametrize("keeps", [False, True])
def test_b1_file_7_b1_lim_4_kill_storms(file: Path, keeps: bool) -> None:
    """Processes are killed in the middle of whatever they do; with `keeps` their peers live on with the test."""
    count, rounds = 6, 4
    for _ in range(rounds):
        peers = [Peer(file) for _ in range(count)]
        tables = [[other.transfer(8, peer) for other in peers] for peer in peers]
        children = []
        for peer, table in zip(peers, tables, strict=True):
            child = os.fork()
            if child == 0:
                for other in peers:
                    if other is not peer:
                        other.close()
                live_dangerously(peer, table)
            children.append(child)
        if not keeps:
            for peer in peers:
                peer.close()
        for child in children:
            time.sleep(0.15)
            os.kill(child, signal.SIGKILL)
        for child in children:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if keeps:
            for peer in peers:
                peer.reset(flush=True, flush_seed=True)
            for peer in peers:
                while (message := peer.recv()) is not None:  # what others had sent or destroyed meanwhile
                    message.free()
                peer.send([16], b"still there")
                assert got(peer).data == b"still there"
                peer.close()


def play(peer: Peer, own: int, handles: list[int], seconds: float) -> list[bytes]:
    """Multicast to all, and receive what all send."""
    seen: list[bytes] = []

    def drain() -> None:
        while (message := peer.recv()) is not None:
            seen.append(message.data)
            peer.free(message)

    limit = time.monotonic() + seconds
    sent = 0
    while time.monotonic() < limit:
        try:
            peer.send(handles, b"%d.%d" % (own, sent))
            sent += 1
        except OSError as fault:
            if fault.errno not in (errno.EDQUOT, errno.EXFULL):
                raise
        drain()
    return seen


@pytest.mark.parametrize(("count", "seconds"), [(8, 2.0)])
def test_b1_ord_1_b1_ord_3_processes_multicast_to_each_other(
    file: Path, tmp_path: Path, count: int, seconds: float
) -> None:
    """B1-ORD-2: one order everywhere."""
    peers = [Peer(file, map_size=1 << 20) for _ in range(count)]
    tables = [[other.transfer(8, peer) for other in peers] for peer in peers]
    sent, go = os.pipe(), os.pipe()
    children = []
    for own in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                seen = play(peers[own], own, tables[own], seconds)
                os.write(sent[1], b"x")
                os.read(go[0], 1)
                while (message := peers[own].recv()) is not None:
                    seen.append(message.data)
                    peers[own].free(message)
                (tmp_path / str(own)).write_bytes(b"\n".join(seen))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    for _ in children:
        assert os.read(sent[0], 1) == b"x"
    os.write(go[1], b"x" * count)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    orders = [(tmp_path / str(own)).read_bytes().split(b"\n") for own in range(count)]
    assert len(orders[0]) > count
    assert all(order == orders[0] for order in orders)
    for peer in peers:
        peer.close()
    for fd in (*sent, *go):
        os.close(fd)


UFFD = """
import ctypes, fcntl, mmap, os, struct, sys, threading
from struct import pack
from kdbusfs.bus1 import abi
from kdbusfs.client.bus1 import Peer
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
address = libc.mmap(None, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
fd = libc.syscall({"x86_64": 323, "aarch64": 282}[os.uname().machine], os.O_CLOEXEC)
assert fd >= 0
fcntl.ioctl(fd, 0xC018AA3F, pack("<3Q", 0xAA, 0, 0))
fcntl.ioctl(fd, 0xC020AA00, pack("<4Q", address, 4096, 1, 0))
peer = Peer(int(sys.argv[1]))
handles = [int(word) for word in sys.argv[3:]]
page = pack("<4Q", *handles, 16, 0) + b"late."
# What is not there yet: all arrays, or nothing but the bytes of the payload.
arrays = ctypes.create_string_buffer(page)
arrays_at = address if sys.argv[2] == "arrays" else ctypes.addressof(arrays)

def send():
    # The array of destinations comes first, then one vector, whose bytes lie at 32.
    fixed = pack("<10Q", 0, arrays_at, 0, 2, vector_at, 1, arrays_at + 16, 1, 0, 0)
    try:
        fcntl.ioctl(peer.fileno(), abi.CMD_SEND, fixed)
        print("sent", flush=True)
    except OSError as fault:
        print(fault.errno, flush=True)

vector = (ctypes.c_uint64 * 2)(address + 32, 5)
vector_at = ctypes.addressof(vector)
thread = threading.Thread(target=send)
thread.start()
print("held", flush=True)
for line in sys.stdin:
    if line == "release\\n":
        source = ctypes.create_string_buffer(page.ljust(4096, b"\\0"), 4096)
        fcntl.ioctl(fd, 0xC028AA03, pack("<5Q", address, ctypes.addressof(source), 4096, 0, 0))  # UFFDIO_COPY
        thread.join()
        break
    print(peer.transfer(64), flush=True)
"""


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("what", ["arrays", "payload"])
def test_b1_send_15_held_up_by_memory(file: Path, what: str, is_killed: bool) -> None:
    """B1-FUSE-9, B1-GEN-6, B1-ORD-1: while a SEND waits for its client's memory, before or after it has begun at its
    receivers, all others go on, on the same peer, too; and both receivers see it at the same place among theirs.
    """
    with Peer(file) as receiver, Peer(file) as second, Peer(file) as other:
        sender = Peer(file)
        handles = [peer.transfer(8, sender) for peer in (receiver, second)]
        both = [peer.transfer(8, other) for peer in (receiver, second)]
        held = subprocess.Popen(
            [sys.executable, "-c", UFFD, str(sender.fileno()), what, *map(str, handles)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            pass_fds=[sender.fileno()],
        )
        assert held.stdin is not None and held.stdout is not None
        assert held.stdout.readline() == "held\n"
        sender.close()
        for number in range(200):
            other.send(both, b"%d" % number)
            with receiver.receive(timeout=PATIENCE) as message:
                assert message.data == b"%d" % number
        held.stdin.write("transfer\n")
        held.stdin.flush()
        assert held.stdout.readline() == "64\n"
        if is_killed:
            held.kill()
            held.wait(PATIENCE)
            assert receiver.recv() is None
        else:
            other.send(both, b"before")
            held.stdin.write("release\n")
            held.stdin.flush()
            assert held.stdout.readline() == "sent\n"
            other.send(both, b"after")
            held.wait(PATIENCE)
            assert [awaited(receiver).data for _ in range(3)] == [b"before", b"late.", b"after"]
            assert awaited(receiver).type == abi.MSG_NODE_DESTROY
            seen = [awaited(second) for _ in range(204)]
            assert [message.data for message in seen[200:203]] == [b"before", b"late.", b"after"]
            assert len(seen[201].handles) == 1 and seen[203].type == abi.MSG_NODE_DESTROY
        held.communicate()
