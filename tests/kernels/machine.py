"""A virtual machine: how qemu is started, and how commands are run in it.

Commands go through a virtio port to a shell in the machine (`init`). ssh would do, but its handshake takes a minute
under emulation on a busy host.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import lzma
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .disks import Disks
from .packages import Kernel, MissingError

MEMORY = 3072  # MiB
CPUS = 2
PROBE_PATIENCE = 20.0  # seconds until a kernel must have said a word under KVM
BOOT_PATIENCE = 900.0  # seconds until the machine answers, on a busy host without KVM
END_PATIENCE = 20.0
NICE = ("nice", "-n", "10")

TCG = "tcg"
KVM = "kvm"

# In this order, with what they need. Those that a kernel has built in are not found.
_MODULES = (
    "virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "crc32c_generic", "ext4", "fuse", "loop", "overlay",
    "tun", "veth", "bridge",
)  # fmt: skip


class Machine:
    """A running machine; leaving the context ends it."""

    def __init__(self, store: Path, kernel: Kernel, disks: Disks, accelerator: str, arguments: str = "") -> None:
        self.kernel = kernel
        self.directory = store / "machine"
        self.accelerator = accelerator
        self._disks = disks
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._commands: socket.socket | None = None

    def __enter__(self) -> Self:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        initrd = self.directory / "initrd"
        make_initrd(self.kernel, self._disks.root, initrd)
        for name, image in (("root", self._disks.root_image), ("tree", self._disks.tree_image)):
            overlay = str(self.directory / f"{name}.qcow2")
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image), overlay]
            subprocess.run(create, check=True, timeout=60)
        command = qemu_command(self.kernel, initrd, self.accelerator, self._arguments)
        command += ["-serial", f"file:{self.directory / 'console'}"]
        for name in ("root", "tree"):
            command += ["-drive", f"file={self.directory / name}.qcow2,if=virtio,format=qcow2,cache=unsafe"]
        command += [
            "-device",
            "virtio-rng-pci",
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtserialport,chardev=commands",
        ]
        self._commands, theirs = socket.socketpair()
        with theirs, (self.directory / "qemu.log").open("wb") as log:
            command += ["-chardev", f"socket,id=commands,fd={theirs.fileno()}"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()]
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(END_PATIENCE)
            self._process = None
        if self._commands is not None:
            self._commands.close()
            self._commands = None
        for name in ("root", "tree"):
            (self.directory / f"{name}.qcow2").unlink(missing_ok=True)

    def _wait_until_ready(self) -> None:
        if self.run("true", patience=BOOT_PATIENCE).code != 0:
            log = (self.directory / "qemu.log").read_text()[-300:]
            raise MissingError(f"{self.kernel.release} does not boot: {log}\n{self.console()}")

    def console(self) -> str:
        """The last lines of its console."""
        with contextlib.suppress(OSError):
            return "\n".join((self.directory / "console").read_text(errors="replace").splitlines()[-15:])
        return ""

    def run(self, script: str, *, patience: float, log: Path | None = None) -> Ended:
        """Run a shell script as root in the machine; what it prints goes to `log` too while it runs.

        A machine in which a script does not end in time takes no other: all later ones are given up at once.
        """
        began = time.monotonic()
        mark = secrets.token_hex(8)
        path = log or self.directory / "last.log"
        code: int | None = None
        output = b""
        with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            if self._commands is None:
                raise OSError
            self._commands.sendall(mark.encode() + b" " + base64.b64encode(script.encode()) + b"\n")
            while code is None:
                # A TimeoutError is an OSError.
                self._commands.settimeout(max(0.01, began + patience - time.monotonic()))
                more = self._commands.recv(1 << 16)
                if not more:
                    raise OSError
                file.write(more)
                output += more
                before, end, after = output.rpartition(b"\n" + mark.encode() + b" ")
                if end and after.endswith(b"\n"):
                    code, output = int(after), before
        if code is None and self._commands is not None:
            self._commands.close()
            self._commands = None
        return Ended(code, output.decode(errors="replace"), time.monotonic() - began)


class Ended:
    """How a script ended: `code` is None if it had to be given up."""

    def __init__(self, code: int | None, output: str, seconds: float) -> None:
        self.code = code
        self.output = output
        self.seconds = seconds


def qemu_command(kernel: Kernel, initrd: Path, accelerator: str, arguments: str) -> list[str]:
    """The command for a machine without disks and network."""
    if kernel.architecture == "arm64":
        # Pointer authentication costs most of the time under emulation.
        machine = ["qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth=off"]
        console = "ttyAMA0"
    else:
        machine = ["qemu-system-x86_64", "-M", "q35", "-cpu", "host" if accelerator == KVM else "max"]
        console = "ttyS0"
    how = KVM if accelerator == KVM else "tcg,thread=multi,tb-size=1024"
    # On a busy host an emulated timer can be too late for the kernel's check of it, which then panics.
    kernel_arguments = f"console={console} no_timer_check net.ifnames=0 loglevel=4 panic=-1 {arguments}".strip()
    return [
        *NICE, *machine, "-accel", how, "-m", str(MEMORY), "-smp", str(CPUS), "-nodefaults", "-display", "none",
        "-no-reboot", "-kernel", str(kernel.image), "-initrd", str(initrd), "-append", kernel_arguments,
    ]  # fmt: skip


def kvm_works(store: Path, kernel: Kernel, disks: Disks) -> bool:
    """Whether a kernel boots under KVM here: there are machines that have /dev/kvm and whose guests hang."""
    if not Path("/dev/kvm").exists() or kernel.architecture != "amd64":
        return False
    initrd = store / "probe-initrd"
    make_initrd(kernel, disks.root, initrd)
    command = [*qemu_command(kernel, initrd, KVM, "kernels.probe"), "-serial", "stdio"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_PATIENCE)
        return b"kernels: the kernel runs" in ended.stdout
    return False


def make_initrd(kernel: Kernel, root: Path, initrd: Path) -> None:
    """busybox, `init`, and the modules that a root on a disk takes."""
    work = initrd.with_name(initrd.name + ".d")
    shutil.rmtree(work, ignore_errors=True)
    for name in ("bin", "dev", "proc", "sys", "root", "lib"):
        (work / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", work / "bin/busybox")
    shutil.copy(Path(__file__).with_name("init"), work / "init")
    for number, module in enumerate(_needed_modules(kernel)):
        name = module.name.split(".")[0]
        (work / f"lib/{number:03d}-{name}.ko").write_bytes(_unpacked(module))
    packed = subprocess.run(
        "find . | cpio --quiet -o -H newc", shell=True, cwd=work, check=True, capture_output=True, timeout=60
    )
    initrd.write_bytes(gzip.compress(packed.stdout, 1))
    shutil.rmtree(work)


def _needed_modules(kernel: Kernel) -> list[Path]:
    found: dict[Path, None] = {}
    for name in _MODULES:
        shown = subprocess.run(
            ["modprobe", "-d", str(kernel.module_base), "-S", kernel.release, "--show-depends", name],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        for line in shown.stdout.splitlines():
            if line.startswith("insmod "):
                found[Path(line.split()[1])] = None
    return list(found)


def _unpacked(module: Path) -> bytes:
    data = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(data)
    if module.suffix == ".zst":
        return subprocess.run(["zstd", "-dqc"], input=data, capture_output=True, check=True, timeout=30).stdout
    return data
