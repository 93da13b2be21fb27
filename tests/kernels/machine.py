"""A virtual machine: how qemu is started, and how commands are run in it."""

from __future__ import annotations

import contextlib
import gzip
import lzma
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
BOOT_PATIENCE = 900.0  # seconds until ssh answers, on a busy machine without KVM
END_PATIENCE = 20.0
NICE = ("nice", "-n", "10")

TCG = "tcg"
KVM = "kvm"

# In this order, with what they need. Those that a kernel has built in are not found.
_MODULES = (
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "crc32c_generic", "ext4", "fuse", "loop", "overlay",
    "tun", "veth", "bridge",
)  # fmt: skip


class Machine:
    """A running machine; leaving the context ends it."""

    def __init__(self, store: Path, kernel: Kernel, disks: Disks, accelerator: str, arguments: str = "") -> None:
        self.kernel = kernel
        self.directory = store / "machine"
        self.accelerator = accelerator
        self._key = store / "key"
        self._disks = disks
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        initrd = self.directory / "initrd"
        make_initrd(self.kernel, self._disks.root, initrd)
        for name, image in (("root", self._disks.root_image), ("tree", self._disks.tree_image)):
            overlay = str(self.directory / f"{name}.qcow2")
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image), overlay]
            subprocess.run(create, check=True, timeout=60)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        command = qemu_command(self.kernel, initrd, self.accelerator, self._arguments)
        command += ["-serial", f"file:{self.directory / 'console'}"]
        for name in ("root", "tree"):
            command += ["-drive", f"file={self.directory / name}.qcow2,if=virtio,format=qcow2,cache=unsafe"]
        command += ["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"]
        command += ["-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]
        with (self.directory / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
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
        for name in ("root", "tree"):
            (self.directory / f"{name}.qcow2").unlink(missing_ok=True)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        limit = time.monotonic() + BOOT_PATIENCE
        while self.run("true", patience=30.0).code != 0:
            if self._process.poll() is not None:
                log = (self.directory / "qemu.log").read_text()[-300:]
                raise MissingError(f"{self.kernel.release}: qemu ended: {log}\n{self.console()}")
            if time.monotonic() > limit:
                raise MissingError(
                    f"{self.kernel.release} does not answer within {BOOT_PATIENCE:g} s:\n{self.console()}"
                )
            time.sleep(2.0)

    def console(self) -> str:
        """The last lines of its console."""
        with contextlib.suppress(OSError):
            return "\n".join((self.directory / "console").read_text(errors="replace").splitlines()[-15:])
        return ""

    def run(self, script: str, *, patience: float, log: Path | None = None) -> Ended:
        """Run a shell script as root in the machine; what it prints goes to `log` too while it runs."""
        command = ["ssh", "-q", "-i", str(self._key), "-p", str(self._port), "-o", "StrictHostKeyChecking=no"]
        command += ["-o", "UserKnownHostsFile=/dev/null", "-o", f"ConnectTimeout={min(patience, 60):.0f}"]
        command += ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=60", "-o", "ServerAliveCountMax=10"]
        path = log or self.directory / "last.log"
        began = time.monotonic()
        with path.open("wb") as file:
            process = subprocess.Popen(
                [*command, "root@127.0.0.1", script], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                code: int | None = process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = None
        return Ended(code, path.read_text(errors="replace"), time.monotonic() - began)


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
