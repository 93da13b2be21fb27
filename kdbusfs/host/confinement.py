"""Restrictions of this process: capabilities, security modules, seccomp, containers.

All of it is read from /proc and /sys, to explain a failure.  Whether an operation works is found out by use
(`host/reach.py`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_SYS_NICE = 23
CAP_SYS_RESOURCE = 24

YAMA_DESCENDANTS = 1
YAMA_NOBODY = 3

_CONTAINER_MARKS = ("/run/.containerenv", "/.dockerenv", "/run/systemd/container")
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, the same on every machine
_UNSEPARATED = "spc_t"
"""The type of a container that SELinux does not separate: what `label=disable` gives."""
_WHOLE_ID_RANGE = 4294967295


@dataclass(frozen=True, slots=True)
class Confinement:
    """Restrictions in force for a process.

    capabilities: effective set, as bits; seccomp: mode in /proc/PID/status, 0: no filter; yama: its ptrace_scope, None
    without Yama; apparmor: the confining profile, or None; selinux: the context if SELinux enforces, or is there and
    the container hides whether it does, else None; container: whether a container manager has marked the system as its
    container; user_namespace: whether the user namespace is not the initial one; overcommit: vm.overcommit_memory, None
    if unknown; device: whether /dev/fuse exists.
    """

    capabilities: int = 0
    seccomp: int = 0
    yama: int | None = None
    apparmor: str | None = None
    selinux: str | None = None
    container: bool = False
    user_namespace: bool = False
    overcommit: int | None = None
    device: bool = True

    def has(self, capability: int) -> bool:
        """Whether the process has CAP_... number `capability` in effect."""
        return bool(self.capabilities >> capability & 1)


def container_options(found: Confinement) -> list[str]:
    """The option that gives this process' container the privileges that the daemon needs."""
    options = [] if found.device else ["--device /dev/fuse"]
    for capability, name in ((CAP_SYS_ADMIN, "SYS_ADMIN"), (CAP_SYS_PTRACE, "SYS_PTRACE")):
        if not found.has(capability):
            options.append(f"--cap-add {name}")
    if not found.has(CAP_DAC_READ_SEARCH) and not found.has(CAP_DAC_OVERRIDE):
        options.append("--cap-add DAC_READ_SEARCH")
    if found.seccomp:
        options.append("--security-opt seccomp=unconfined")
    if found.apparmor is not None:
        options.append("--security-opt apparmor=unconfined")
    if found.selinux is not None and _UNSEPARATED not in found.selinux.split(":"):
        options.append("--security-opt label=disable")
    return options


def allowing(found: Confinement, otherwise: str) -> str:
    """Advice how to allow a refused operation: options of the container, or `otherwise` outside of one."""
    options = container_options(found) if found.container else []
    return f"the container refuses; start it with '{' '.join(options)}'" if options else otherwise


def confinement(root: Path = Path("/")) -> Confinement:
    """Read the restrictions of this process.  root: path above /proc and /sys, for tests."""
    status = _status(root)
    return Confinement(
        capabilities=int(status.get("CapEff", "0"), 16),
        seccomp=int(status.get("Seccomp", "0")),
        yama=_number(root / "proc/sys/kernel/yama/ptrace_scope"),
        apparmor=_apparmor(root),
        selinux=_selinux(root),
        container=_in_container(root),
        user_namespace=_in_user_namespace(root),
        overcommit=_number(root / "proc/sys/vm/overcommit_memory"),
        device=(root / "dev/fuse").exists(),
    )


def _status(root: Path) -> dict[str, str]:
    with open(root / "proc/self/status", encoding="utf-8", errors="replace") as file:
        lines = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in lines}


def _apparmor(root: Path) -> str | None:
    # The second file is the same one for kernels with several security modules.
    for name in ("proc/self/attr/apparmor/current", "proc/self/attr/current"):
        if name.endswith("attr/current") and not (root / "sys/module/apparmor").exists():
            return None
        text = _text(root / name)
        if text:
            profile, _, mode = text.partition(" (")
            return None if profile == "unconfined" or mode == "complain)" else profile
    return None


def _selinux(root: Path) -> str | None:
    enforces = _number(root / "sys/fs/selinux/enforce")
    if enforces is None and _in_container(root) and "selinuxfs" in (_text(root / "proc/filesystems") or "").split():
        enforces = 1  # container managers hide that directory
    return _text(root / "proc/self/attr/current") if enforces == 1 else None


def _in_container(root: Path) -> bool:
    # A mark alone proves nothing: a container image may be the root of a machine.
    try:
        is_first = os.readlink(root / "proc/self/ns/pid") == _FIRST_PID_NAMESPACE
    except OSError:
        is_first = False
    return not is_first and ("container" in os.environ or any((root / mark[1:]).exists() for mark in _CONTAINER_MARKS))


def _in_user_namespace(root: Path) -> bool:
    fields = (_text(root / "proc/self/uid_map") or "").split()
    return fields != ["0", "0", str(_WHOLE_ID_RANGE)]


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None
