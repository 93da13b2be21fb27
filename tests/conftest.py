"""Fixtures for tests with a real mount: a domain of their own, which is gone afterwards whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from kdbusfs.fuse.mount import Mount, unmount, visible_mount
from tests.support import account, old_kernel

START_PATIENCE = 240.0  # seconds until a mount must answer
END_PATIENCE = 240.0  # seconds until a daemon must have ended
TEST_PATIENCE = 600.0  # seconds after which the connection of a test that hangs is aborted

_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MS_BIND = 0x1000
_ROOT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1
_CONNECTIONS = Path("/sys/fs/fuse/connections")
_libc = ctypes.CDLL(None, use_errno=True)

# How long an example takes, or what makes one, says how busy the machine is.
settings.register_profile("kdbusfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kdbusfs")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test what was compiled of older sources; take away from the kernel what is asked for."""
    old_kernel.enter(config)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell has it for what runs in the background; programs that are started here would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _refuse_stale_builds()


def _refuse_stale_builds() -> None:
    built = max((path.stat().st_mtime for path in _ROOT.glob("kdbusfs__mypyc.*.so")), default=0.0)
    for compiled in _ROOT.glob("kdbusfs/*/*.so"):
        source = compiled.with_name(compiled.name.split(".")[0] + ".py")
        if source.exists() and source.stat().st_mtime > built:
            raise pytest.UsageError(f"{source.name} has changed since it was compiled: make venv, or make pure")


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    old_kernel.leave()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that are marked so run on older kernels too; if the variable asks for one, all run on that anyway."""
    mark = metafunc.definition.get_closest_marker("old_kernels")
    if mark is not None and not old_kernel.prefix():
        metafunc.parametrize("kernel", ("", old_kernel.OLDEST, *mark.args), indirect=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its account of the documents to the process that prints the summary."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["documents"] = (account.ran, account.not_run)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the account of a worker that has ended to that of the others."""
    account.add(*getattr(node, "workeroutput", {}).get("documents", ({}, {})))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many commands of the documents were run, and which blocks were not, and why."""
    for line in account.lines():
        terminalreporter.write_line(line)


class DomainMount:
    """A mounted domain, served by a daemon of its own; `path` is its mount point, `pid` the daemon.

    prefix: what its command begins with.
    """

    def __init__(self, path: Path, *options: str, prefix: tuple[str, ...] = old_kernel.prefix()) -> None:
        self.path = path
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by clean_up
        command = [*prefix, sys.executable, "-m", "kdbusfs", "test", str(path), "-f"]
        for option in options:
            command += ["-o", option]
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind("")  # an abstract address that the kernel chooses
        self._manager.settimeout(0.01)
        address = self._manager.getsockname().decode().replace("\0", "@")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "NOTIFY_SOCKET": address},
            preexec_fn=_die_with_parent,
        )
        self.pid = self.process.pid
        self.expected = (0, "")
        self._mount: Mount | None = None
        self._watchdog = threading.Timer(TEST_PATIENCE, self.abort)
        self._watchdog.daemon = True
        self._watchdog.start()

    def wait_until_ready(self) -> None:
        """Return when the daemon has tried its mount; AssertionError with its log if it does not in time."""
        limit = time.monotonic() + START_PATIENCE
        is_ready = False
        while time.monotonic() < limit and self.process.poll() is None:
            with contextlib.suppress(TimeoutError):
                is_ready = is_ready or self._manager.recv(100) == b"READY=1"
            entry = visible_mount(str(self.path))
            if entry is not None:
                self._mount = Mount(entry.path, entry.device)
            if entry is not None and is_ready:
                # Another process looks: one that is not answered could not be ended from here.
                subprocess.run(["stat", str(self.path / "control")], check=True, stdout=subprocess.DEVNULL, timeout=120)
                return
        raise AssertionError(f"the daemon does not mount (exit code {self.process.poll()}):\n{self.log()}")

    def stats(self) -> dict[str, Any]:
        """What the `stats` file shows."""
        found: dict[str, Any] = json.loads((self.path / ".kdbusfs/stats").read_bytes())
        return found

    def log(self) -> str:
        """What the daemon has printed so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def abort(self) -> None:
        """Cut the connection between the kernel and the daemon: whoever waits for the mount gets an error."""
        if self._mount is not None:
            with contextlib.suppress(OSError):
                (_CONNECTIONS / str(self._mount.connection) / "abort").write_text("1")

    def stop(self) -> int:
        """End the daemon with SIGTERM; gives its exit code, or fails the test if it does not end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_PATIENCE)

    def expect(self, exit_code: int) -> None:
        """The daemon is to end with `exit_code`, and may say why."""
        self.expected = (exit_code, self.log())

    def clean_up(self) -> None:
        """Leave nothing behind, however the daemon is."""
        self._watchdog.cancel()
        if self.process.poll() is None:
            self.abort()
            self.process.kill()
            self.process.wait(END_PATIENCE)
        if self._mount is not None:
            unmount(self._mount, 5.0)
        self._manager.close()
        self._log.close()


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, data.encode()) != 0:
        pytest.fail(f"{target} cannot be mounted: {os.strerror(ctypes.get_errno())}")


def _open_to_everybody(path: Path) -> None:
    """Let clients of other users reach `path` below directories that are closed to them, as mktemp(1) makes them.

    In this mount namespace each is covered by a directory that is open to all, with links to the rest.
    """
    closed = [each for each in (path, *path.parents) if not each.parent.stat().st_mode & 0o001]
    for inside in reversed(closed):
        directory = inside.parent
        names = os.listdir(directory)
        kept = [os.open(each, os.O_PATH) for each in (directory, inside)]
        _mount("none", directory, "tmpfs", 0, "mode=755")
        for number, target in zip(kept, (directory / ".covered", inside), strict=True):
            target.mkdir()
            _mount(f"/proc/self/fd/{number}", target, "none", _MS_BIND)
            os.close(number)
        for name in names:
            if name != inside.name:
                (directory / name).symlink_to(Path(".covered", name))
    os.chdir(os.getcwd())


@pytest.fixture(scope="session")
def private_mounts() -> None:
    """Put this process into a mount namespace of its own, which ends with its processes."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    if _libc.unshare(_CLONE_NEWNS) != 0 or _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) != 0:
        pytest.fail(f"no private mount namespace: {os.strerror(ctypes.get_errno())}")
    _open_to_everybody(_ROOT)
    if visible_mount(str(_CONNECTIONS)) is None:
        _libc.mount(b"none", os.fsencode(_CONNECTIONS), b"fusectl", 0, None)


@pytest.fixture(scope="session")
def old_kernel_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes system calls away."""
    return old_kernel.build(tmp_path_factory.mktemp("old-kernel"))


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What the daemon's command begins with; the parameter is an older kernel, or empty."""
    name = getattr(request, "param", "")
    return old_kernel.under(name, request.getfixturevalue("old_kernel_library")) if name else old_kernel.prefix()


@pytest.fixture
def domain_mount(private_mounts: None, kernel: tuple[str, ...]) -> Iterator[DomainMount]:
    """A fresh domain at a directory of its own.

    Its daemon must end with exit code 0 at SIGTERM, and must not have printed anything by then, unless the test
    says otherwise with `expect`.
    """
    # Not below tmp_path, which other users may not enter.
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    path.chmod(0o755)
    domain = DomainMount(path, prefix=kernel)
    try:
        domain.wait_until_ready()
        yield domain
        code = domain.stop()
        assert (code, domain.log()) == domain.expected
        assert visible_mount(str(path)) is None
    finally:
        domain.clean_up()
        path.rmdir()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built once, outside of the checkout; without compiling, which `make install` is tested with."""
    from tests.support.checkout import building, make

    # Workers of pytest-xdist have a common parent directory: the first one builds for all.
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    directory /= "wheel"
    with building():
        if not directory.exists():
            make("wheel", f"DIST={directory}", "KDBUSFS_PURE=1")
    (built,) = directory.glob("kdbusfs-*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_environment(wheel: Path) -> Iterator[Path]:
    """A fresh virtual environment with the wheel in it, and nothing of the checkout."""
    from tests.support.checkout import lend_dependencies

    # Not below tmp_path, which other users may not enter.
    with tempfile.TemporaryDirectory(prefix="kdbusfs-") as scratch:
        os.chmod(scratch, 0o755)
        home = Path(scratch, "venv")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=120)
        pip = [sys.executable, "-m", "pip", "--python", str(home / "bin/python"), "install", "--no-deps", "--no-index"]
        quiet = ["-q", "--disable-pip-version-check", "--root-user-action", "ignore"]
        ended = subprocess.run([*pip, *quiet, str(wheel)], cwd="/", capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended
        lend_dependencies(home)
        yield home
