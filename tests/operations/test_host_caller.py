"""LinuxCaller against real processes: credentials, namespaces, memory, descriptors."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from errno import EBADF, EFAULT, EMFILE, ESRCH

import pytest

from kdbusfs.base.errors import CommandError
from kdbusfs.base.identity import NO_ID, Creds
from kdbusfs.host.caller import LinuxCaller
from kdbusfs.host.host import LinuxHost
from kdbusfs.native._native import lib
from tests.operations.host_child import Child
from tests.support import features

ALL_SEALS = 0xF
DROP = """
os.setgroups([7, 5, 9]); os.setresgid(21, 22, 23); os.setresuid(11, 12, 13)
"""
SECRET = """
def secret():
    fd = libc.syscall(447, 0)
    if fd < 0:
        return 0
    os.ftruncate(fd, 4096)
    areas.append(mmap.mmap(fd, 4096))
    return ctypes.addressof(ctypes.c_char.from_buffer(areas[-1]))
"""
UNSHARE_USER = "assert libc.unshare(0x10000000) == 0\n"


@pytest.fixture
def host() -> Iterator[LinuxHost]:
    host = LinuxHost()
    yield host
    host.close()


@pytest.fixture
def child() -> Iterator[Child]:
    with Child() as child:
        yield child


def errno_of(call: object, *arguments: object) -> int:
    with pytest.raises(CommandError) as info:
        call(*arguments)  # type: ignore[operator]
    return info.value.errno


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def in_user_ns(uid_map: str, gid_map: str) -> Child:
    """A child in a user namespace of its own with these maps."""
    child = Child(UNSHARE_USER)
    child.ask("1")
    for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
        with open(f"/proc/{child.pid}/{name}", "w") as file:
            file.write(text)
    return child


# Credentials


def test_ids_and_groups_are_those_of_the_thread_now(host: LinuxHost) -> None:
    with Child(DROP) as child:
        assert child.ask("1") == 1
        caller = host.caller(child.pid)
        assert caller.ids() == Creds(11, 12, 13, 12, 21, 22, 23, 22)
        assert caller.user == 11
        assert caller.groups() == (5, 7, 9)
        assert not caller.has_ipc_owner()


def test_status_gives_the_same_ids_as_the_pidfd(host: LinuxHost) -> None:
    with Child(DROP) as child:
        child.ask("1")
        caller = host.caller(child.pid)
        assert caller.status().ids() == caller.ids()
        assert caller.status().numbers(b"PPid") == (caller.pids().ppid,) == (os.getpid(),)


def test_ids_are_those_of_the_thread_and_not_of_its_leader(host: LinuxHost) -> None:
    text = """
ready, leave = threading.Event(), threading.Event()
def other():
    say(tid=tid(), result=libc.syscall(117, 0, 1234, 0))  # setresuid of this thread alone
    leave.wait()
threading.Thread(target=other, daemon=True).start()
"""
    with Child(text) as child:
        answer = child.hear()
        assert answer["result"] == 0
        caller = host.caller(answer["tid"])
        assert caller.ids()[:4] == (0, 1234, 0, 1234)
        assert caller.pids() == (child.pid, answer["tid"], os.getpid())
        caller.reset(child.pid)
        assert caller.ids()[:4] == (0, 0, 0, 0)


def test_root_has_ipc_owner_until_the_capability_is_dropped(host: LinuxHost, child: Child) -> None:
    """PRIV-1."""
    assert host.caller(child.pid).has_ipc_owner()
    with Child(prefix=("setpriv", "--bounding-set=-ipc_owner", "--inh-caps=-ipc_owner")) as weak:
        weak.ask("1")
        assert not host.caller(weak.pid).has_ipc_owner()


def test_root_of_a_child_user_namespace_has_no_ipc_owner(host: LinuxHost) -> None:
    """NS-3: the capability is in effect there, but not in the domain's namespace."""
    with Child(prefix=("unshare", "-Ur")) as child:
        child.ask("1")
        caller = host.caller(child.pid)
        assert int(caller.status().field(b"CapEff") or b"0", 16) >> 15 & 1
        assert not caller.has_ipc_owner()


def test_a_vanished_thread_is_esrch(host: LinuxHost) -> None:
    child = Child()
    child.ask("1")
    caller = host.caller(child.pid)
    gone = host.caller(child.pid)
    assert gone.ids().uid == 0  # has its pidfd
    child.end()
    for victim in (caller, gone):
        victim._ids = victim._status = None
        assert errno_of(victim.ids) == ESRCH
        assert errno_of(victim.groups) == ESRCH
        assert errno_of(victim.has_ipc_owner) == ESRCH
        assert errno_of(victim.write, 4096, b"x") == ESRCH
        assert errno_of(lambda v: v.user_ns, victim) == ESRCH


def test_thread_0_which_no_one_can_see_is_esrch(host: LinuxHost) -> None:
    """FUSE gives 0 for a thread outside the daemon's pid namespace; it must not stand for the daemon."""
    caller = host.caller(0)
    for call in (caller.ids, caller.groups, caller.has_ipc_owner, caller.status):
        assert errno_of(call) == ESRCH
    assert errno_of(lambda: caller.root) == ESRCH
    assert errno_of(caller.take_file, 0) == ESRCH
    assert errno_of(caller.write, 4096, b"x") == ESRCH


def test_reset_and_end_close_an_own_pidfd_and_no_foreign_one(host: LinuxHost, child: Child) -> None:
    caller = host.caller(child.pid)
    before = descriptors()
    pidfd = lib.kfs_thread_open(child.pid)
    for given in (-1, pidfd, -1, -1):
        caller.reset(child.pid, given)
        assert caller.ids().uid == 0
    assert descriptors() == before + 2
    deferred = caller.defer()
    caller.reset(0)
    assert deferred.ids().uid == 0
    assert descriptors() == before + 2
    del deferred
    assert descriptors() == before + 1
    os.close(pidfd)


# Namespaces


def test_own_namespaces_translate_nothing(host: LinuxHost, child: Child) -> None:
    caller = host.caller(child.pid)
    assert caller.user_ns == host.namespaces.user
    assert caller.pid_ns == host.namespaces.pid
    assert caller.root == host.caller(os.getpid()).root
    for number in (0, 1, 77777, NO_ID):
        assert caller.uid_from_global(number) == caller.gid_from_global(number) == number
    assert caller.uid_to_global(77777) == caller.gid_to_global(77777) == 77777
    assert caller.uid_to_global(NO_ID) is caller.gid_to_global(NO_ID) is caller.domain_uid(NO_ID) is None
    assert caller.domain_uid(5) == 5


def test_ids_in_a_child_user_namespace(host: LinuxHost) -> None:
    """META-6, POL-2, NS-4."""
    with in_user_ns("0 1000 10", "0 2000 10") as child:
        for _ in range(2):  # the second time from the cache
            caller = host.caller(child.pid)
            assert caller.user_ns != host.namespaces.user
            assert caller.ids().uid == 0
            assert caller.uid_from_global(1003) == 3
            assert caller.gid_from_global(2009) == 9
            assert caller.uid_from_global(0) == caller.gid_from_global(2010) == 65534
            assert caller.uid_from_global(NO_ID) == NO_ID
            assert caller.uid_to_global(3) == 1003
            assert caller.gid_to_global(9) == 2009
            assert caller.uid_to_global(10) is caller.gid_to_global(10) is None
            assert caller.domain_uid(1003) == 1003


def test_the_user_namespaces_around_one_with_who_made_them(host: LinuxHost) -> None:
    """L-105."""
    own = host.namespaces.user
    assert host.caller(os.getpid()).user_chain == host.caller(os.getpid()).view_users().user_chain == ((own, NO_ID),)
    with Child(prefix=("unshare", "-Ur", "unshare", "-Ur")) as child:
        child.ask("1")
        caller = host.caller(child.pid)
        (inner, maker), (outer, other), (last, _) = caller.user_chain
        assert (inner, last, maker, other) == (caller.user_ns, own, os.geteuid(), os.geteuid())
        assert len({inner, outer, last}) == 3
        assert caller.view().user_chain == caller.user_chain


def test_a_view_has_the_user_namespace_of_somebody_else(host: LinuxHost) -> None:
    """L-101."""
    with in_user_ns("0 1000 10", "0 2000 10") as child:
        inside, outside = host.caller(child.pid), host.caller(os.getpid())
        mixed = outside.view(inside.view_users())
        assert (mixed.user_ns, mixed.pid_ns, mixed.root) == (inside.user_ns, outside.pid_ns, outside.root)
        assert (mixed.uid_from_global(1003), mixed.gid_from_global(2009)) == (3, 9)
        assert outside.view(outside.view_users()).uid_from_global(1003) == 1003
        assert inside.view(outside.view_users()).uid_from_global(1003) == 1003


def test_a_map_that_is_written_later_is_seen(host: LinuxHost) -> None:
    with Child(UNSHARE_USER) as child:
        child.ask("1")
        assert host.caller(child.pid).uid_from_global(1000) == 65534
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child.pid}/{name}", "w") as file:
                file.write("0 1000 1\n")
        assert host.caller(child.pid).uid_from_global(1000) == 0
        assert host.caller(child.pid).gid_to_global(0) == 1000


def test_kept_maps_are_bounded_and_never_mixed_up(host: LinuxHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbusfs.host.namespaces.MAX_CACHED", 3)
    for uid in range(1000, 1008):
        with in_user_ns(f"0 {uid} 1", "0 1 1") as child:
            assert host.caller(child.pid).uid_to_global(0) == uid
        assert len(host.namespaces._cached) <= 3


PID_NS = ("unshare", "-p", "-f", "--kill-child")


def grandchild(child: Child) -> int:
    """The process inside the namespace; `unshare -f` itself stays outside."""
    with open(f"/proc/{child.pid}/task/{child.pid}/children") as file:
        return int(file.read())


def test_pids_of_by_namespace(host: LinuxHost, child: Child) -> None:
    """HELLO-11."""
    assert host.caller(os.getpid()).pids_of(child.pid) == {host.namespaces.pid: child.pid}
    assert host.caller(os.getpid()).pids_of(0) is None
    assert host.caller(os.getpid()).pids_of(1 << 40) is None
    with Child(prefix=PID_NS) as inside:
        inside.ask("1")
        inner = grandchild(inside)
        caller = host.caller(inner)
        assert caller.pid_ns != host.namespaces.pid
        numbers = {host.namespaces.pid: inner, caller.pid_ns: 1}
        assert caller.pids_of(1) == (numbers if features.tells_foreign_pids() else None)
        assert host.caller(os.getpid()).pids_of(inner) == numbers
        assert caller.pids_of(2) is None
    deadline = time.monotonic() + 240
    while os.path.exists(f"/proc/{inner}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert host.caller(os.getpid()).pids_of(inner) is None


# Memory


def test_write_reaches_the_client(host: LinuxHost, child: Child) -> None:
    address = child.ask("memory(8192)")
    host.caller(child.pid).write(address + 4090, b"0123456789ab")
    assert child.ask("areas[0][4088:4104].hex()") == b"\0\0".hex() + b"0123456789ab".hex() + "0000"


@pytest.mark.parametrize(
    "address", [0, 1, 4096, 1 << 46, (1 << 63) - 2, 1 << 63, 0xFFFFFFFFFF600000, (1 << 64) - 8, (1 << 64) - 1]
)
def test_addresses_that_are_not_the_clients_are_efault(host: LinuxHost, child: Child, address: int) -> None:
    caller = host.caller(child.pid)
    assert errno_of(caller.write, address, bytes(16)) == EFAULT
    memory = host.memory()
    memory.resize(65536)
    if address:
        assert errno_of(caller.copy_payload, memory, 0, [(address, 16)]) == EFAULT
        assert errno_of(caller.copy_payload, memory, 0, [(address, 65536)]) == EFAULT
    memory.close()


def test_a_write_that_only_fits_in_part_is_efault(host: LinuxHost, child: Child) -> None:
    address = child.ask("memory(4096)")
    child.ask(f"libc.mprotect(ctypes.c_void_p({address}), 4096, 1)")
    assert errno_of(host.caller(child.pid).write, address + 4090, bytes(4)) == EFAULT
    address = child.ask("memory(8192)")
    assert child.ask(f"libc.mprotect(ctypes.c_void_p({address + 4096}), 4096, 0)") == 0
    assert errno_of(host.caller(child.pid).write, address + 4090, bytes(12)) == EFAULT


def pool_bytes(memory: object, offset: int, size: int) -> bytes:
    return os.pread(memory.fd, size, offset)  # type: ignore[attr-defined]


def test_payload_is_gathered_with_zero_bytes_between(host: LinuxHost, child: Child) -> None:
    """SEND-11."""
    address = child.ask("memory(8192, b'abcdefgh' * 1024)")
    memory = host.memory()
    memory.resize(1 << 20)
    memory.store(0, b"\xff" * 400000)
    caller = host.caller(child.pid)
    caller.copy_payload(memory, 24, [(address + 1, 5), (0, 3), (address, 8192), (0, 70000), (address + 7, 1)])
    expected = b"bcdef" + bytes(3) + b"abcdefgh" * 1024 + bytes(70000) + b"h"
    assert pool_bytes(memory, 0, 24) == b"\xff" * 24
    assert pool_bytes(memory, 24, len(expected) + 1) == expected + b"\xff"


def test_more_vectors_than_one_call_takes(host: LinuxHost, child: Child) -> None:
    address = child.ask("memory(4096, bytes(range(256)) * 16)")
    memory = host.memory()
    memory.resize(1 << 16)
    vectors = [(address + n, 3) if n % 5 else (0, 2) for n in range(500)]
    host.caller(child.pid).copy_payload(memory, 8, vectors)
    text = bytes(range(256)) * 16
    expected = b"".join(text[n : n + 3] if n % 5 else bytes(2) for n in range(500))
    assert pool_bytes(memory, 8, len(expected)) == expected


def test_two_mebibytes_in_one_piece(host: LinuxHost, child: Child) -> None:
    address = child.ask("memory(2 << 20, b'0123456789abcdef' * (2 << 16))")
    memory = host.memory()
    memory.resize(16 << 20)
    host.caller(child.pid).copy_payload(memory, 5 << 20, [(address, 2 << 20)])
    assert pool_bytes(memory, 5 << 20, 2 << 20) == b"0123456789abcdef" * (2 << 16)


def test_partly_readable_payload_is_efault(host: LinuxHost, child: Child) -> None:
    """SEND-12."""
    address = child.ask("memory(8192)")
    assert child.ask(f"libc.munmap(ctypes.c_void_p({address + 4096}), 4096)") == 0
    memory = host.memory()
    memory.resize(1 << 16)
    caller = host.caller(child.pid)
    assert errno_of(caller.copy_payload, memory, 0, [(address, 4097)]) == EFAULT
    assert errno_of(caller.copy_payload, memory, 0, [(address, 16), (address + 4096, 1)]) == EFAULT
    caller.copy_payload(memory, 0, [(address, 4096)])


def test_memory_of_its_process_alone_is_efault(host: LinuxHost) -> None:
    """GEN-5, SEND-12: kdbus ran in the process itself."""
    with Child(SECRET) as child:
        address = child.ask("secret()")
        if not address:
            pytest.skip("the kernel has no memfd_secret(2)")
        memory = host.memory()
        memory.resize(1 << 16)
        caller = host.caller(child.pid)
        assert errno_of(caller.copy_payload, memory, 0, [(address, 16)]) == EFAULT
        assert errno_of(caller.write, address, bytes(8)) == EFAULT


# Descriptors


def test_a_taken_file_is_the_same_open_file(host: LinuxHost, child: Child) -> None:
    """SEND-18."""
    fd = child.ask("os.memfd_create('x', 3)")
    child.ask(f"os.write({fd}, b'12345')")
    file = host.caller(child.pid).take_file(fd)
    child.ask(f"os.close({fd})")
    assert os.lseek(file.fd, 0, os.SEEK_CUR) == 5
    assert not os.get_inheritable(file.fd)
    assert file.seals() == 0
    assert file.size() == 5
    assert not file.is_bus_file and not file.is_unix_socket and not file.is_path
    before = descriptors()
    file.close()
    file.close()
    assert descriptors() == before - 1


@pytest.mark.parametrize("fd", [-1, -100, 999, 1 << 31, 1 << 40])
def test_a_number_without_a_descriptor_is_ebadf(host: LinuxHost, child: Child, fd: int) -> None:
    assert errno_of(host.caller(child.pid).take_file, fd) == EBADF


def test_kinds_of_files(host: LinuxHost, child: Child, tmp_path: os.PathLike[str]) -> None:
    """SEND-13, SEND-16."""
    child.ask("exec('import socket, fcntl, select') or 0")
    path = os.path.join(tmp_path, "s")
    child.ask(
        f"exec('s = socket.socket(socket.AF_UNIX); s.bind(path)', "
        f"globals().update(path={path!r}) or globals()) or 0"
    )
    caller = host.caller(child.pid)

    def take(expression: str) -> object:
        return caller.take_file(
            child.ask(
                f"globals().setdefault('kept', []).append({expression}) or "
                "(kept[-1] if isinstance(kept[-1], int) else kept[-1].fileno())"
            )
        )

    table = {
        "socket.socket(socket.AF_UNIX)": (True, False, None),
        "socket.socket(socket.AF_INET)": (False, False, None),
        f"os.open({path!r}, os.O_PATH)": (False, True, None),
        "os.open('/', os.O_PATH)": (False, True, None),
        "os.open('/', os.O_RDONLY)": (False, False, None),
        "os.open('/dev/null', os.O_RDWR)": (False, False, None),
        "os.open('/proc/self/status', os.O_RDONLY)": (False, False, None),
        "os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR)": (False, False, 1),
        "os.eventfd(0)": (False, False, None),
        "os.pipe()[0]": (False, False, None),
        "select.epoll()": (False, False, None),
        "os.memfd_create('plain', 0)": (False, False, 1),
        "os.memfd_create('sealable', 2)": (False, False, 0),
    }
    for expression, expected in table.items():
        file = take(expression)
        assert (file.is_unix_socket, file.is_path, file.seals()) == expected, expression  # type: ignore[attr-defined]
        assert not file.is_bus_file, expression  # type: ignore[attr-defined]
        file.close()  # type: ignore[attr-defined]


def test_sealed_memfd(host: LinuxHost, child: Child) -> None:
    fd = child.ask("os.memfd_create('x', 3)")
    child.ask("exec('import fcntl') or 0")
    child.ask(f"os.ftruncate({fd}, 12345) or fcntl.fcntl({fd}, 1033, 15)")
    file = host.caller(child.pid).take_file(fd)
    assert file.seals() == ALL_SEALS
    assert file.size() == 12345
    file.close()


class SlowCloser:
    """Closes when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int]] = []

    def close_later(self, user: int, fd: int) -> None:
        self.waiting.append((user, fd))

    def closing(self, user: int) -> int:
        return sum(1 for waiting, _ in self.waiting if waiting == user)

    def go_on(self, user: int) -> None:
        for entry in [entry for entry in self.waiting if entry[0] == user]:
            os.close(entry[1])
            self.waiting.remove(entry)


def test_descriptors_in_flight_are_bounded_for_each_user(child: Child) -> None:
    closer = SlowCloser()
    host = LinuxHost(closer=closer, max_descriptors=3)
    caller = host.caller(child.pid)
    files = [caller.take_file(0) for _ in range(3)]
    assert errno_of(caller.take_file, 0) == EMFILE
    with Child("os.setresuid(5, 5, 5)\n") as other:
        other.ask("1")
        host.caller(other.pid).take_file(0).close()
    assert closer.closing(5) == 1
    # A descriptor counts until its close is done, however long that takes.
    files[0].close()
    files[1].close()
    assert host.descriptors.held(0) == 3
    assert errno_of(caller.take_file, 0) == EMFILE
    closer.go_on(0)
    assert host.descriptors.held(0) == 1
    assert host.descriptors.held(5) == 1
    files += [caller.take_file(0), caller.take_file(0)]
    assert errno_of(caller.take_file, 0) == EMFILE
    for file in files:
        file.close()
    closer.go_on(0)
    closer.go_on(5)
    assert host.descriptors.held(0) == host.descriptors.held(5) == 0
    host.close()


def test_all_users_together_leave_a_quarter_of_the_table(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (8, 8))
    closer = SlowCloser()
    host = LinuxHost(closer=closer)
    files = []
    for uid in (0, 5):
        with Child(f"os.setresuid({uid}, {uid}, {uid})\n") as one:
            one.ask("1")
            caller = host.caller(one.pid)
            files += [caller.take_file(0) for _ in range(3)]
            assert errno_of(caller.take_file, 0) == EMFILE
    with Child("os.setresuid(6, 6, 6)\n") as third:
        third.ask("1")
        caller = host.caller(third.pid)
        assert errno_of(caller.take_file, 0) == EMFILE
        for file in files:
            file.close()
        assert errno_of(caller.take_file, 0) == EMFILE
        closer.go_on(5)
        caller.take_file(0).close()
    closer.go_on(0)
    closer.go_on(6)
    host.close()


def test_only_small_memory_is_closed_by_the_reader(child: Child) -> None:
    closer = SlowCloser()
    host = LinuxHost(closer=closer)
    caller = host.caller(child.pid)
    small = child.ask("os.memfd_create('x', 3)")
    large = child.ask("os.memfd_create('x', 3)")
    child.ask(f"os.ftruncate({large}, 1 << 40)")
    for fd, expected in ((small, 0), (large, 1), (0, 2)):
        file = caller.take_file(fd)
        file.seals()
        file.close()
        assert len(closer.waiting) == expected
    assert host.descriptors.held(0) == 2
    closer.go_on(0)
    assert host.descriptors.held(0) == 0
    host.close()


def test_a_socket_pair_is_no_bus_file_but_a_unix_socket(host: LinuxHost) -> None:
    one, two = socket.socketpair()
    caller: LinuxCaller = host.caller(os.getpid())
    file = caller.take_file(one.fileno())
    assert file.is_unix_socket and not file.is_bus_file
    file.close()
    one.close()
    two.close()
