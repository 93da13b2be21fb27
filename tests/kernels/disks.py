"""The two disks of a virtual machine: a Debian root, and the tree with the project, built at this machine's speed.

Below `store`: `root-ARCH`, `root-ARCH.img`, `tree-ARCH` (kdbusfs, and shared where it lies beside this checkout) and
`tree-ARCH.img`. The machines write to copies only.
"""

from __future__ import annotations

import filecmp
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from .packages import KEYRING, MissingError, mirror

PROJECT = Path(__file__).resolve().parents[2]
SHARED = PROJECT.parent / "shared"
INSIDE = "/srv/kdbusfs"  # the project, in the root and in the machine
SELFTESTS = "/srv/shared/tools/selftests"
SELFTESTS_SCRATCH = "/srv/selftests"  # where they are built
PATIENT_SCRATCH = "/srv/selftests-patient"  # where they are built with longer waits
WAITS_FACTOR = 20
ROOT_PATIENCE = 7200.0  # seconds
BUILD_PATIENCE = 7200.0
IMAGE_PATIENCE = 600.0

_PACKAGES = {
    "what the machine runs on": "kmod iproute2 busybox-static util-linux procps psmisc netbase adduser",
    "what building needs": "python3 python3-venv python3-dev gcc libc6-dev make pkg-config libfuse3-dev libcap-dev",
    "what tests need": "fuse3 g++ groff-base systemd dbus-daemon strace gdb sudo git file libcap2-bin e2fsprogs",
    "conditions that are tried": "apparmor apparmor-utils podman crun uidmap slirp4netns ca-certificates",
}
_NATIVE_PACKAGES = {"amd64": "gcc-multilib", "arm64": ""}
_NAMES_BY_UNAME = {"x86_64": "amd64", "aarch64": "arm64"}
_EMULATORS = {"amd64": "x86_64", "arm64": "aarch64"}
_ROOT_INTERPRETER = "cpython-311"  # Debian 12's
_PATIENT_BUILD = f"""
    set -e; rm -rf {PATIENT_SCRATCH}; cp -a {SELFTESTS_SCRATCH} {PATIENT_SCRATCH}
    cd {PATIENT_SCRATCH}/*/tools/testing/selftests/kdbus
    sed -i -e '/^int kdbus_msg_recv_poll/,/^}}/ s/^\tdo {{/\ttimeout_ms *= {WAITS_FACTOR};\\n&/' \
        -e 's/now.tv_nsec + timeout;/now.tv_nsec + {WAITS_FACTOR} * timeout;/' kdbus-util.c
    [ $(grep -cE '= {WAITS_FACTOR};|{WAITS_FACTOR} [*] timeout;' kdbus-util.c) = 2 ]
    make -s"""
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


class Disks:
    """The disks for machines of one architecture."""

    def __init__(self, store: Path, architecture: str) -> None:
        self.architecture = architecture
        self.root = store / f"root-{architecture}"
        self.root_image = store / f"root-{architecture}.img"
        self.tree = store / f"tree-{architecture}"
        self.tree_image = store / f"tree-{architecture}.img"

    @property
    def has_selftests(self) -> bool:
        """Whether ../shared/tools/selftests is there to be run."""
        return (self.tree / SELFTESTS.removeprefix("/srv/")).exists()

    def make_root(self) -> None:
        """Make the root and its image, unless they are there.  Raises MissingError."""
        if self.root_image.exists():
            return
        if not self.root.exists():
            self._bootstrap()
        (self.root / "etc/fstab").write_text("")
        (self.root / "etc/hostname").write_text("kernels\n")
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost kernels\n")
        _image(self.root, self.root_image, "4G")

    def _bootstrap(self) -> None:
        if not _runs_here(self.architecture):
            _register_emulator(self.architecture)
        packages = " ".join([*_PACKAGES.values(), _NATIVE_PACKAGES[self.architecture]]).split()
        partial = self.root.with_name(self.root.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        options = ["--variant=minbase", "--skip=check/qemu", f"--architectures={self.architecture}"]
        options += [f"--include={','.join(packages)}", f"--keyring={KEYRING}"]
        _run(ROOT_PATIENCE, "mmdebstrap", "-q", *options, "bookworm", str(partial), mirror("bookworm"))
        partial.rename(self.root)

    def make_tree(self) -> None:
        """Bring the tree up to date with this checkout, build what has changed, make its image.

        Raises MissingError, also when it does not build.
        """
        project = self.tree / "kdbusfs"
        project.mkdir(parents=True, exist_ok=True)
        changed = _mirror_checkout(PROJECT, project)
        if SHARED.is_dir() and not (self.tree / "shared").exists():
            shutil.copytree(SHARED, self.tree / "shared", symlinks=True)
        if not changed and self.tree_image.exists():
            return
        # Modules that this checkout has compiled fit where the interpreters do. An emulated compiler takes an hour, and
        # the sources run as well.
        natively = _runs_here(self.architecture, natively=True)
        lent = natively and _lend_compiled(PROJECT, project)
        pure = "export KDBUSFS_PURE=1; " if lent or not natively else ""
        # pip knows of no module at the top that it has not built.
        path = f"echo {INSIDE} >.venv/lib/python3.11/site-packages/lent.pth"
        built = f"touch .venv/built kdbusfs__mypyc.*.so && {path}" if lent else "true"
        installed = "make -s .venv/installed && " + built
        self._build(f"{pure}cd {INSIDE} && {installed} && make -s venv && make -s -C docs/examples")
        self._build(f"cd {INSIDE} && touch .venv/ready-to-test")
        self._build(f"cd {INSIDE} && .venv/bin/python -c 'from tests.bench import peers; peers.build()'")
        if self.has_selftests:
            # It builds them, finds nothing at the mount point, and fails.
            self._build(
                f"mkdir -p {SELFTESTS_SCRATCH} && cd / && export TMPDIR={SELFTESTS_SCRATCH} && "
                f"{{ {SELFTESTS} /nowhere --timeout 5 hello || true; }} && "
                f"ls {SELFTESTS_SCRATCH}/*/tools/testing/selftests/kdbus/kdbus-test"
            )
            self._build(_PATIENT_BUILD)
        _image(self.tree, self.tree_image, "3G")

    def _build(self, script: str) -> None:
        program = Path(__file__).with_name("in-root")
        _run(BUILD_PATIENCE, "nice", str(program), str(self.root), str(self.tree), "sh", "-c", script)


def _runs_here(architecture: str, natively: bool = False) -> bool:
    if _NAMES_BY_UNAME.get(platform.machine()) == architecture:
        return True
    return not natively and subprocess.run(["arch-test", architecture], capture_output=True).returncode == 0


def _register_emulator(architecture: str) -> None:
    """What systemd does on a machine that it runs on: the kernel starts programs of `architecture` by qemu."""
    if not (_BINFMT / "register").exists():
        _run(30.0, "mount", "-t", "binfmt_misc", "none", str(_BINFMT))
    rule = Path(f"/usr/lib/binfmt.d/qemu-{_EMULATORS[architecture]}.conf")
    try:
        (_BINFMT / "register").write_text(rule.read_text())
    except OSError as error:
        raise MissingError(f"programs of {architecture} cannot be run here: {rule}: {error.strerror}") from None


def _mirror_checkout(source: Path, target: Path) -> bool:
    """Copy what git knows of, or would add, and take away what is gone; whether anything was different."""
    listed = _run(60.0, "git", "-C", str(source), "ls-files", "-co", "--exclude-standard", "-z")
    names = {name for name in listed.split("\0") if name and (source / name).is_file()}
    manifest = target / ".mirrored"
    before = set(manifest.read_text().split("\0")) if manifest.exists() else set()
    changed = False
    for name in sorted(before - names - {""}):
        (target / name).unlink(missing_ok=True)
        changed = True
    for name in sorted(names):
        if (target / name).exists() and filecmp.cmp(source / name, target / name, shallow=False):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target / name)  # a new time: make sees it
        changed = True
    manifest.write_text("\0".join(sorted(names)))
    return changed


def _lend_compiled(source: Path, target: Path) -> bool:
    """Copy compiled modules that are as new as their sources and made for the interpreter of the root."""
    compiled = [*source.glob("*.so"), *source.glob("kdbusfs/**/*.so")]
    if not any(f".{_ROOT_INTERPRETER}-" in path.name for path in source.glob("kdbusfs__mypyc.*.so")):
        return False
    built = max(path.stat().st_mtime for path in source.glob("kdbusfs__mypyc.*.so"))
    sources = [path for pattern in ("kdbusfs/**/*.py", "kdbusfs/native/*.[ch]") for path in source.glob(pattern)]
    if any(path.stat().st_mtime > built for path in sources if path.name != "_native.c"):
        return False
    for path in compiled:
        shutil.copy(path, target / path.relative_to(source))
    return True


def _image(directory: Path, image: Path, size: str) -> None:
    partial = image.with_name(image.name + ".partial")
    partial.unlink(missing_ok=True)
    with partial.open("wb") as file:
        file.truncate(int(size.removesuffix("G")) << 30)
    # Checksums of metadata take a kernel module that Linux 5.10 would have to find by itself.
    _run(IMAGE_PATIENCE, "mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum", "-d", str(directory), "-F", str(partial))
    os.replace(partial, image)


def _run(patience: float, *command: str) -> str:
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=patience,
        )  # fmt: skip
    except FileNotFoundError:
        raise MissingError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise MissingError(f"{command[0]} did not end within {patience:g} s") from None
    if ended.returncode != 0:
        print(ended.stdout, file=sys.stderr)
        raise MissingError(f"{' '.join(command)[:120]}: exit code {ended.returncode}")
    return ended.stdout
