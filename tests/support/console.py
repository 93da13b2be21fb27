"""A shell in separate namespaces that runs the commands of a document one after the other."""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import time
from pathlib import Path

DOMAIN = "/run/kdbusfs"
COMMAND_PATIENCE = 240.0  # seconds that a command may take
READY_PATIENCE = 240.0  # seconds until a background command must have printed its output
_END = "@@end@@"

# /run and /mnt are empty directories here: documents may name mount points that exist nowhere else.  Our helpers come
# into /sbin, where alone mount(8) looks for them; there need not be an overlayfs for that.
_SETUP = """\
set -e
mount --make-rprivate /
mount -t tmpfs none /run
mount -t tmpfs none /mnt
mkdir {domain} /run/.sbin /run/.original
sbin=$(readlink -f /sbin)
mount --bind $sbin /run/.original
cp -as /run/.original/. /run/.sbin
ln -sf {helpers}/mount.fuse.kdbusfs {helpers}/mount.kdbusfs /run/.sbin
mount --bind /run/.sbin $sbin
ulimit -c 0
set +e
"""


class ConsoleError(AssertionError):
    """A command failed, hung, or printed other output than the document shows."""


class Console:
    """One shell in its own pid namespace; all its processes end with it.

    programs: a directory that comes first on PATH; helpers: where those of mount(8) are; directory: where the commands
    are given; scratch: for logs.
    """

    def __init__(self, programs: Path, helpers: Path, directory: Path, scratch: Path) -> None:
        self._scratch = scratch
        self._jobs = 0
        self._foreground: int | None = None
        self._output = b""
        environment = {
            **{name: os.environ[name] for name in ("LANG", "LC_ALL", "CC") if name in os.environ},
            "PATH": f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(directory),
            "TMPDIR": str(scratch),
            "PYTHONWARNINGS": "error",
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "100",
            "TERM": "dumb",
        }
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._shell = subprocess.Popen(
            [*unshare, "bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment,
        )
        self.run(_SETUP.format(domain=DOMAIN, helpers=shlex.quote(str(helpers))))

    def run(self, command: str, patience: float = COMMAND_PATIENCE) -> str:
        """Run a command and return its output; ConsoleError unless its exit code is 0."""
        assert self._shell.stdin is not None
        # Read as a whole, and evaluated without input, so that no command can swallow the next one.
        self._shell.stdin.write(f"eval {shlex.quote(command)} </dev/null; printf '\\n{_END} %s\\n' $?\n".encode())
        self._shell.stdin.flush()
        output, code = self._read(command, time.monotonic() + patience)
        if code != 0:
            raise ConsoleError(f"$ {command}\n{output}\nexit code {code}")
        return output

    def run_job(self, command: str) -> Path:
        """Start a command that ends in `&`; returns the file of its output, which only it writes."""
        self._jobs += 1
        log = self._scratch / f"job-{self._jobs}"
        self.run(f"exec 8>&1 9>&2 >{shlex.quote(str(log))} 2>&1\n{command}\nexec >&8 2>&9 8>&- 9>&-")
        return log

    def run_until_the_end(self, command: str, ready: str) -> None:
        """Start a command that a reader would run in a second shell, and wait until the file `ready` exists."""
        log = self.run_job(f"env --default-signal=INT setsid bash -c {shlex.quote(command)} &")
        self._foreground = int(self.run("echo $!"))
        waiting = f"for i in $(seq 2400); do [ -e {shlex.quote(ready)} ] && exit; kill -0 $! || exit 1; sleep 0.1; done"
        try:
            self.run(f"({waiting}; exit 1)")
        except ConsoleError:
            raise ConsoleError(f"$ {command}\n{log.read_text()}\n{ready} does not appear") from None

    def interrupt(self) -> None:
        """Send Ctrl-C to the command of `run_until_the_end`; it must end, and its mount with it."""
        if self._foreground is None:
            return
        pid, self._foreground = self._foreground, None
        self.run(f"kill -INT -- -{pid} 2>/dev/null; wait {pid}; true")
        gone = f"! kill -0 -- -{pid} 2>/dev/null"
        self.run(f"for i in $(seq 600); do {gone} && break; sleep 0.1; done; {gone}")
        self.check_unmounted()

    def mount_domain(self) -> None:
        """Mount a domain at /run/kdbusfs, which documents assume."""
        log = shlex.quote(str(self._scratch / "daemon"))
        self.run(f"kdbusfs kdbusfs {DOMAIN} -f >{log} 2>&1 & daemon=$!")
        self.run(f"for i in $(seq 2400); do [ -e {DOMAIN}/control ] && break; sleep 0.1; done; [ -e {DOMAIN}/control ]")

    def unmount_domain(self) -> None:
        """Unmount it; the daemon must end with exit code 0 and without output."""
        log = self._scratch / "daemon"
        try:
            self.run("kill $daemon && wait $daemon")
        finally:
            printed = log.read_text()
        if printed:
            raise ConsoleError(f"the daemon of {DOMAIN} said: {printed}")
        self.check_unmounted()

    def check_unmounted(self) -> None:
        """Check that no mount of kdbusfs is left."""
        self.run("! grep fuse.kdbusfs /proc/mounts")

    def close(self) -> None:
        """End all processes, whatever their state."""
        self._shell.kill()
        self._shell.wait()
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self, command: str, limit: float) -> tuple[str, int]:
        assert self._shell.stdout is not None
        pattern = re.compile(rf"(.*?)\n?^{_END} (\d+)\n".encode(), re.DOTALL | re.MULTILINE)
        while True:
            match = pattern.match(self._output)
            if match:
                self._output = self._output[match.end() :]
                return match[1].decode(errors="replace"), int(match[2])
            left = limit - time.monotonic()
            ready = select.select([self._shell.stdout], [], [], max(left, 0))[0]
            chunk = os.read(self._shell.stdout.fileno(), 65536) if ready else b""
            if not chunk:
                why = "the shell has ended" if ready else "it takes too long"
                raise ConsoleError(f"$ {command}\n{self._output.decode(errors='replace')}\n{why}")
            self._output += chunk
