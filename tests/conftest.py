"""Fixtures for tests with a real mount: each has a domain of its own, which is removed in any case."""

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
from tests.support.forkserver import Daemon, ForkServer

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

# Files that take more than 20 s on a quiet machine.
_LONGEST = (
    "tests/mount/test_install.py",
    "tests/mount/test_load_together.py",
    "tests/mount/test_garbage.py",
    "tests/mount/test_load.py",
    "tests/mount/test_selftests.py",
    "tests/mount/test_precedence.py",
    "tests/mount/test_bench.py",
    "tests/mount/test_userns.py",
    "tests/mount/test_trial.py",
    "tests/mount/test_units.py",
    "tests/mount/test_containers.py",
    "tests/docs/test_commands.py",
    "tests/model/test_items.py",
    "tests/model/test_commands.py",
    "tests/model/test_names.py",
    "tests/model/test_audience.py",
    "tests/mount/test_bad_input.py",
    "tests/mount/test_many_closes.py",
    "tests/mount/test_pool_writers.py",
    "tests/mount/test_opens.py",
)

# The duration of examples and generators depends on the load of the machine.
settings.register_profile("kdbusfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kdbusfs")


def pytest_configure(config: pytest.Config) -> None:
    """Reject stale compiled modules; emulate an older kernel if that is requested."""
    old_kernel.enter(config)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells ignore these signals for background jobs, and programs started here would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _refuse_stale_builds()


def _refuse_stale_builds() -> None:
    built = max((path.stat().st_mtime for path in _ROOT.glob("kdbusfs__mypyc.*.so")), default=0.0)
    for compiled in _ROOT.glob("kdbusfs/*/*.so"):
        source = compiled.with_name(compiled.name.split(".")[0] + ".py")
        if source.exists() and source.stat().st_mtime > built:
            raise pytest.UsageError(f"{source.name} has changed since it was compiled: make venv, or make pure")


def pytest_unconfigure() -> None:
    """Clean up."""
    old_kernel.leave()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: with several workers none is left alone with one of them at the end."""
    order = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.relative_to(_ROOT).as_posix(), len(order)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests with the mark on older kernels too, unless KDBUSFS_TEST_KERNEL runs all tests on one."""
    mark = metafunc.definition.get_closest_marker("old_kernels")
    if mark is not None and not old_kernel.prefix():
        metafunc.parametrize("kernel", ("", old_kernel.OLDEST, *mark.args), indirect=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts of document blocks from an xdist worker to the main process."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["documents"] = (account.ran, account.not_run)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of a worker that has ended."""
    account.add(*getattr(node, "workeroutput", {}).get("documents", ({}, {})))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many commands of the documents were run, and the skipped blocks with their reasons."""
    for line in account.lines():
        terminalreporter.write_line(line)


class DomainMount:
    """A mounted domain with its own daemon.  path: mount point; pid: of the daemon.

    prefix: prepended to the daemon's command; server: starts the daemon if there is no prefix.
    """

    def __init__(
        self,
        path: Path,
        *options: str,
        prefix: tuple[str, ...] = old_kernel.prefix(),
        server: ForkServer | None = None,
    ) -> None:
        self.path = path
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by clean_up
        arguments = ["test", str(path), "-f"]
        for option in options:
            arguments += ["-o", option]
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind("")  # an abstract address chosen by the kernel
        self._manager.settimeout(0.01)
        address = self._manager.getsockname().decode().replace("\0", "@")
        self.process: subprocess.Popen[bytes] | Daemon
        if server is not None and not prefix:
            self.process = server.start(arguments, address, self._log.fileno())
        else:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "kdbusfs", *arguments],
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
        """Wait until the daemon is ready.  AssertionError with its log at the timeout."""
        limit = time.monotonic() + START_PATIENCE
        is_ready = False
        while time.monotonic() < limit and self.process.poll() is None:
            with contextlib.suppress(TimeoutError):
                is_ready = is_ready or self._manager.recv(100) == b"READY=1"
            entry = visible_mount(str(self.path))
            if entry is not None:
                self._mount = Mount(entry.path, entry.device)
            if entry is not None and is_ready:
                # In another process: if the mount does not answer, that one can be killed.
                subprocess.run(["stat", str(self.path / "control")], check=True, stdout=subprocess.DEVNULL, timeout=120)
                return
        raise AssertionError(f"the daemon does not mount (exit code {self.process.poll()}):\n{self.log()}")

    def stats(self) -> dict[str, Any]:
        """The content of the `stats` file."""
        found: dict[str, Any] = json.loads((self.path / ".kdbusfs/stats").read_bytes())
        return found

    def log(self) -> str:
        """The output of the daemon so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def abort(self) -> None:
        """Abort the FUSE connection: blocked callers get an error."""
        if self._mount is not None:
            with contextlib.suppress(OSError):
                (_CONNECTIONS / str(self._mount.connection) / "abort").write_text("1")

    def stop(self) -> int:
        """Send SIGTERM and return the exit code; fails the test if the daemon does not end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_PATIENCE)

    def expect(self, exit_code: int) -> None:
        """Expect that the daemon exits with `exit_code`, and with the output so far."""
        self.expected = (exit_code, self.log())

    def clean_up(self) -> None:
        """Kill the daemon and unmount, in any state."""
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
    """Make `path` accessible to other users although parent directories are private, as those of mktemp(1) are.

    In this mount namespace each is covered by a tmpfs that all may enter, with links to the other entries.
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
    """Move this process to a private mount namespace."""
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
    """The library that emulates an older kernel."""
    return old_kernel.build(tmp_path_factory.mktemp("old-kernel"))


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Prefix of the daemon's command.  The parameter is an older kernel, or empty."""
    name = getattr(request, "param", "")
    return old_kernel.under(name, request.getfixturevalue("old_kernel_library")) if name else old_kernel.prefix()


@pytest.fixture(scope="session")
def fork_server(private_mounts: None) -> Iterator[ForkServer]:
    """Starts daemons in the private mount namespace."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def domain_mount(private_mounts: None, kernel: tuple[str, ...], fork_server: ForkServer) -> Iterator[DomainMount]:
    """A new domain in a directory of its own.

    The daemon must exit with 0 at SIGTERM and print nothing, unless the test calls `expect`.
    """
    # Not below tmp_path, which other users may not enter.
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    path.chmod(0o755)
    domain = DomainMount(path, prefix=kernel, server=fork_server)
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
    """The wheel, built once outside of the checkout, uncompiled; `make install` tests the compiled one."""
    from tests.support.checkout import building, make

    # Workers of pytest-xdist share the parent directory: the first one builds.
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
    """A new virtual environment with the wheel, without the checkout."""
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
