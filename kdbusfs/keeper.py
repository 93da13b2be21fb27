"""The keeper: a process that holds a mount's /dev/fuse and vault, so that the mount outlives its daemon.

It starts the daemon, and a spare one that has loaded everything and waits.  When the daemon is killed, it has the spare
one go on.  It knows nothing about FUSE or kdbus: it runs alone, as `python -I -S keeper.py`, and imports little, for it
is there as long as the mount.

Clients must never wait for a daemon that does not come: after FAILURES_MAX failed starts it lets go of /dev/fuse, and
the kernel ends the mount.

A daemon that was killed may be unable to die: one of its threads waits in the kernel for a client, and that client for
a daemon.  So its end is not what waitpid(2) tells but that its first thread is a zombie.  From then on none of its
threads runs code of its own.  To notice that without looking all the time there is the pipe `alive`, see `Process`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections import deque
from typing import NoReturn

FAILURES_MAX = 5
FAILURES_WITHIN = 10.0  # seconds
SETTLED = 0.1
"""Seconds after which a daemon that was ready counts as started."""

EXIT_OK = 0
EXIT_INTERNAL = 4

LOADED, READY, ALONE = b"L", b"R", b"A"
"""What a daemon reports: it has loaded everything; it serves; it cannot have a successor on this kernel."""
FIRST, SUCCESSOR = "first", "successor"
"""What a daemon is: of a mount that nobody has served yet, or of one whose daemon has ended."""
GO = b"G"
"""The only order: serve."""

FUSE_NAME, VAULT_NAME = "kdbusfs-fuse", "kdbusfs-vault"
"""What systemd knows the descriptors by.  It lets go of /dev/fuse when the mount is gone."""

_DYING_POLL = 2  # milliseconds
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_SOL_SOCKET, _SCM_RIGHTS = 1, 1


class Process:
    """A daemon, or one to be.  `command` gets one more word: its role and the numbers of its descriptors.

    reports: what it says.  alive: a pipe that ends with its process: its other end is open in a thread that shares its
    descriptors with none of the others, so it is closed even if one of those is stuck.
    """

    def __init__(self, command: list[str], role: str, descriptors: list[int]) -> None:
        orders, self._orders = os.pipe()
        self.reports, reports = os.pipe()
        self.alive, alive = os.pipe()
        passed = [*descriptors, orders, reports, alive]
        for number in (orders, reports, alive):
            os.set_inheritable(number, True)
        words = [role, *map(str, passed)]
        arguments = [*command, ",".join(words)]
        try:
            self.pid = os.posix_spawn(arguments[0], arguments, os.environ)
        finally:
            for number in (orders, reports, alive):
                os.close(number)
        self.pidfd = os.pidfd_open(self.pid)
        self.ready_at = 0.0
        self.status: int | None = None
        """As of waitpid(2), once it is reaped."""

    def go(self) -> None:
        """Have it serve."""
        try:
            os.write(self._orders, GO)
        except BrokenPipeError:
            pass  # it has ended already, which is noticed elsewhere

    def is_over(self) -> bool:
        """Whether it runs no more code of its own.  Reaps it if it can be."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                return _state(self.pid) in ("Z", "X")
            self.status = status
        return True

    @property
    def exit_code(self) -> int | None:
        """Its exit code if it has ended by itself, None if it was killed."""
        if self.status is None or os.WIFSIGNALED(self.status):
            return None
        return os.waitstatus_to_exitcode(self.status)

    def kill(self, number: int) -> None:
        """Send it a signal."""
        if self.status is None:
            os.kill(self.pid, number)

    def close(self) -> None:
        """Close the descriptors to it."""
        for number in (self._orders, self.reports, self.alive, self.pidfd):
            os.close(number)


def _state(pid: int) -> str:
    """The letter of proc(5); "X" for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return "X"


class Manager:
    """systemd, if it started this process: notifications, and the descriptors that it keeps for the next keeper."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def tell(self, state: str, descriptor: int = -1) -> None:
        """Send a notification, with a descriptor or without; nobody may be there."""
        if not self._address:
            return
        import _socket

        sent = [] if descriptor < 0 else [(_SOL_SOCKET, _SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))]
        try:
            out = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            out.sendmsg([state.encode()], sent, _socket.MSG_DONTWAIT, self._address)
            out.close()
        except OSError:
            pass


class Keeper:
    """Keeps one mount.

    fuse, vault: the descriptors; announcer: of a pipe to whoever waits for the mount, for the first daemon, or -1;
    path, device: of the mount, as mountinfo has them; command: of a daemon;
    in_background: leave the terminal when the mount is ready; resumed: there was a keeper before.
    """

    def __init__(
        self,
        fuse: int,
        vault: int,
        announcer: int,
        mount: tuple[str, str],
        command: list[str],
        *,
        in_background: bool,
        resumed: bool,
    ) -> None:
        self._fuse = fuse
        self._vault = vault
        self._announcer = announcer
        self._path, self._device = mount
        self._command = command
        self._in_background = in_background
        self._resumed = resumed
        self._manager = Manager()
        self._poll = select.poll()
        self._leader: Process | None = None
        self._spare: Process | None = None
        self._former: list[Process] = []
        """Killed ones that could not be reaped yet."""
        self._failures: deque[float] = deque(maxlen=FAILURES_MAX)
        self._was_ready = False
        self._is_alone = False
        self._is_gone = False
        self._is_dying = False
        self._is_stopping = False
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (*_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        """Until the mount is gone; gives the exit code."""
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(self._fuse, 0)  # it has POLLERR when the mount is gone
        role = SUCCESSOR if self._resumed else FIRST
        self._lead(Process(self._command, role, [self._fuse, self._vault, self._announcer]))
        if self._announcer >= 0:
            os.close(self._announcer)
        while True:
            for number, _ in self._poll.poll(_DYING_POLL if self._is_dying else None):
                self._look(number)
            code = self._next_leader()
            if code is not None:
                self._end_spare()
                return code

    def _look(self, number: int) -> None:
        """Something happened to descriptor `number`."""
        leader = self._leader
        if number == self._wake:
            self._take_signals()
        elif number == self._fuse:
            self._is_gone = True
            self._poll.unregister(self._fuse)
        elif leader is not None and number == leader.reports:
            self._take_reports(leader)
        elif leader is not None and number in (leader.alive, leader.pidfd):
            self._is_dying = True
            self._poll.unregister(number)
        elif self._spare is not None and number == self._spare.pidfd:
            self._end_spare()

    def _take_signals(self) -> None:
        for number in os.read(self._wake, 64):
            if number == signal.SIGCHLD:
                for process in self._former[:]:
                    if process.is_over() and process.status is not None:
                        self._former.remove(process)
            else:
                self._is_stopping = True
                self._manager.tell("STOPPING=1")
                if self._leader is not None:
                    self._leader.kill(signal.SIGTERM)

    def _take_reports(self, leader: Process) -> None:
        said = os.read(leader.reports, 16)
        if not said:
            self._poll.unregister(leader.reports)
        if ALONE in said:
            self._is_alone = True
            self._let_go()
        if READY in said:
            leader.ready_at = time.monotonic()
            if not self._was_ready:
                self._was_ready = True
                self._announce()
            if not self._is_alone and not self._is_stopping:
                self._start_spare()

    def _announce(self) -> None:
        """The mount is ready for the first time."""
        if not self._is_alone:
            for name, descriptor in ((FUSE_NAME, self._fuse), (VAULT_NAME, self._vault)):
                # `systemctl restart` leaves the vault of the mount before.
                self._manager.tell(f"FDSTOREREMOVE=1\nFDNAME={name}")
                self._manager.tell(f"FDSTORE=1\nFDNAME={name}", descriptor)
        self._manager.tell("READY=1")
        if self._in_background:
            os.setsid()
            os.chdir("/")
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            os.close(null)

    def _lead(self, process: Process) -> None:
        """Have `process` serve."""
        self._leader = process
        self._is_dying = False
        for number in (process.reports, process.alive, process.pidfd):
            self._poll.register(number, select.POLLIN)
        process.go()

    def _start_spare(self) -> None:
        if self._spare is None:
            self._spare = Process(self._command, SUCCESSOR, [self._fuse, self._vault, -1])
            self._poll.register(self._spare.pidfd, select.POLLIN)

    def _end_spare(self) -> None:
        """It is not needed any more, or has ended by itself: then the next one is started with the next leader."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self._poll.unregister(spare.pidfd)
            spare.kill(signal.SIGKILL)
            spare.close()
            self._former.append(spare)

    def _next_leader(self) -> int | None:
        """Have another daemon serve if the present one is over.  Gives the exit code if nobody is to serve any more."""
        leader = self._leader
        if leader is None or not self._is_dying or not leader.is_over():
            return None
        self._bury(leader)
        has_failed = leader.exit_code is None or leader.exit_code != EXIT_OK
        if leader.exit_code is not None and not (has_failed and self._was_ready and not leader.ready_at):
            if has_failed:
                self._unmount()
            return leader.exit_code
        if self._is_stopping or self._is_gone or self._is_alone or not self._was_ready:
            is_unmounted = self._is_gone and not self._is_mounted()
            self._unmount()
            return EXIT_OK if self._is_stopping or is_unmounted else EXIT_INTERNAL
        now = time.monotonic()
        if not leader.ready_at or now - leader.ready_at < SETTLED:
            self._failures.append(now)
            if len(self._failures) == FAILURES_MAX and now - self._failures[0] < FAILURES_WITHIN:
                print(f"kdbusfs: {self._path} cannot be served any more: no daemon starts", file=sys.stderr)
                self._unmount()
                return EXIT_INTERNAL
        self._start_spare()
        spare, self._spare = self._spare, None
        assert spare is not None
        self._poll.unregister(spare.pidfd)
        self._lead(spare)
        return None

    def _bury(self, leader: Process) -> None:
        self._leader = None
        for number in (leader.reports, leader.alive, leader.pidfd):
            try:
                self._poll.unregister(number)
            except KeyError:
                pass
        leader.close()
        if leader.status is None:
            self._former.append(leader)

    def _let_go(self) -> None:
        """Close /dev/fuse and the vault: the mount ends with its daemon."""
        if self._fuse >= 0:
            try:
                self._poll.unregister(self._fuse)
            except KeyError:
                pass
            os.close(self._fuse)
            os.close(self._vault)
            self._fuse = self._vault = -1

    def _unmount(self) -> None:
        """Nobody is going to answer any more: end everybody's wait, and take the mount away."""
        self._end_spare()
        self._let_go()
        if self._is_mounted():
            from ctypes import CDLL, c_char_p, c_int

            umount2 = CDLL(None).umount2
            umount2.argtypes = [c_char_p, c_int]
            umount2(os.fsencode(self._path), _MNT_DETACH | _UMOUNT_NOFOLLOW)

    def _is_mounted(self) -> bool:
        """Whether our mount is what its path shows."""
        device = ""
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                fields = line.split(" ")
                if _unescape(fields[4]) == self._path:
                    device = fields[2]
        return device == self._device


def _unescape(text: str) -> str:
    for number in (0o40, 0o11, 0o12, 0o134):
        text = text.replace(f"\\{number:03o}", chr(number))
    return text


def main(words: list[str]) -> NoReturn:
    """words: fuse, vault and announcer descriptors, "background" or "foreground", "new" or "resumed", path and device
    of the mount, then the command of a daemon.
    """
    fuse, vault, announcer = map(int, words[:3])
    for number in (fuse, vault):
        os.set_inheritable(number, True)
    keeper = Keeper(
        fuse,
        vault,
        announcer,
        (words[5], words[6]),
        words[7:],
        in_background=words[3] == "background",
        resumed=words[4] == "resumed",
    )
    sys.exit(keeper.run())


if __name__ == "__main__":
    main(sys.argv[1:])
