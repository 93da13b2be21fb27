"""Flags, users and metadata as text and as JSON, alike for all commands."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from kdbusfs.abi.v3 import constants as c

from .output import local_time

if TYPE_CHECKING:
    from kdbusfs.client import Caps, Metadata

NONE_ID: Final = 0xFFFFFFFF
"""A user or group id that stands for "none"."""

HELLO_FLAGS: Final = {
    c.HELLO_ACCEPT_FD: "accept-fd",
    c.HELLO_ACTIVATOR: "activator",
    c.HELLO_POLICY_HOLDER: "policy-holder",
    c.HELLO_MONITOR: "monitor",
}
NAME_FLAGS: Final = {
    c.NAME_REPLACE_EXISTING: "replace-existing",
    c.NAME_ALLOW_REPLACEMENT: "allow-replacement",
    c.NAME_QUEUE: "queue",
    c.NAME_IN_QUEUE: "in-queue",
    c.NAME_ACTIVATOR: "activator",
}
MAKE_FLAGS: Final = {c.MAKE_ACCESS_GROUP: "access-group", c.MAKE_ACCESS_WORLD: "access-world"}
ATTACH_FLAGS: Final = {
    c.ATTACH_TIMESTAMP: "timestamp",
    c.ATTACH_CREDS: "creds",
    c.ATTACH_PIDS: "pids",
    c.ATTACH_AUXGROUPS: "auxgroups",
    c.ATTACH_NAMES: "names",
    c.ATTACH_TID_COMM: "tid-comm",
    c.ATTACH_PID_COMM: "pid-comm",
    c.ATTACH_EXE: "exe",
    c.ATTACH_CMDLINE: "cmdline",
    c.ATTACH_CGROUP: "cgroup",
    c.ATTACH_CAPS: "caps",
    c.ATTACH_SECLABEL: "seclabel",
    c.ATTACH_AUDIT: "audit",
    c.ATTACH_CONN_DESCRIPTION: "description",
}
ACCESS: Final = {c.POLICY_SEE: "see", c.POLICY_TALK: "talk", c.POLICY_OWN: "own"}

# In the order of their numbers, <linux/capability.h>.
_CAPABILITIES: Final = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
)


def flag_names(flags: int, names: Mapping[int, str]) -> list[str]:
    """The names of the bits in `flags`, and unknown bits as numbers."""
    found = [name for bit, name in names.items() if bit and flags & bit]
    unknown = flags & ~sum(names)
    return [*found, hex(unknown)] if unknown else found


@cache
def user_name(uid: int) -> str:
    """A user's name, or the number if it has none."""
    if uid == NONE_ID:
        return "-"
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


@cache
def group_name(gid: int) -> str:
    """A group's name, or the number if it has none."""
    if gid == NONE_ID:
        return "-"
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)


def proc_command(pid: int, euid: int | None) -> tuple[str, str] | None:
    """comm and command line of a process from /proc; None if they are not available.

    euid: of the connection; a process of another user has reused the pid, and is ignored.
    """
    try:
        if euid is not None and os.stat(f"/proc/{pid}").st_uid not in (euid, 0):
            return None
        with open(f"/proc/{pid}/comm", "rb") as file:
            comm = os.fsdecode(file.read(64)).removesuffix("\n")
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = os.fsdecode(file.read(4096)).rstrip("\0").replace("\0", " ")
    except OSError:
        return None
    return comm, line


def capability_names(mask: int, last: int) -> list[str]:
    """The names of a set of capabilities, or ["all"]."""
    if mask == (1 << last + 1) - 1:
        return ["all"]
    known = dict(enumerate(_CAPABILITIES.split()))
    return [known.get(number, f"cap_{number}") for number in range(last + 1) if mask >> number & 1]


def _caps_json(caps: Caps) -> dict[str, Any]:
    sets = ("inheritable", "permitted", "effective", "bounding")
    return {"last": caps.last_cap, **{name: f"{getattr(caps, name):#x}" for name in sets}}


def metadata_json(metadata: Metadata) -> dict[str, Any]:
    """Metadata as JSON: only what was received."""
    found: dict[str, Any] = {}
    for name in ("timestamp", "creds", "pids", "audit"):
        value = getattr(metadata, name)
        if value is not None:
            found[name] = value._asdict()
    if metadata.auxgroups is not None:
        found["auxgroups"] = list(metadata.auxgroups)
    if metadata.owned_names:
        found["names"] = [
            {"name": name.name, "flags": flag_names(name.flags, NAME_FLAGS)} for name in metadata.owned_names
        ]
    for name in ("tid_comm", "pid_comm", "exe", "cmdline", "cgroup", "seclabel", "description"):
        value = getattr(metadata, name)
        if value is not None:
            found[name] = value
    if metadata.caps is not None:
        found["caps"] = _caps_json(metadata.caps)
    return found


def _ids(real: int, effective: int, saved: int, filesystem: int, name_of: Any) -> str:
    """Four ids of a process, shortened if they are equal."""
    if real == effective == saved == filesystem:
        return f"{name_of(real)} ({real})" if name_of(real) != str(real) else str(real)
    parts = zip(("real", "effective", "saved", "fs"), (real, effective, saved, filesystem), strict=True)
    return ", ".join(f"{kind} {name_of(number)} ({number})" for kind, number in parts)


def metadata_lines(metadata: Metadata) -> list[tuple[str, str]]:
    """Metadata as lines of a label and a text, not escaped: only what was received."""
    lines: list[tuple[str, str]] = []
    if metadata.creds is not None:
        creds = metadata.creds
        lines.append(("User", _ids(creds.uid, creds.euid, creds.suid, creds.fsuid, user_name)))
        lines.append(("Group", _ids(creds.gid, creds.egid, creds.sgid, creds.fsgid, group_name)))
    if metadata.auxgroups is not None:
        lines.append(("Groups", " ".join(group_name(gid) for gid in metadata.auxgroups) or "none"))
    if metadata.pids is not None:
        pids = metadata.pids
        hidden = "not visible from here"
        lines.append(("PID", str(pids.pid or hidden)))
        lines.append(("Thread", str(pids.tid or hidden)))
        lines.append(("Parent", str(pids.ppid or hidden)))
    for label, text in (
        ("Process", metadata.pid_comm),
        ("Thread name", metadata.tid_comm),
        ("Executable", metadata.exe),
        ("Command", metadata.cmdline),
        ("Control group", metadata.cgroup),
        ("Security label", metadata.seclabel),
    ):
        if text is not None:
            lines.append((label, text))
    if metadata.caps is not None:
        for label in ("effective", "permitted", "inheritable", "bounding"):
            names = capability_names(getattr(metadata.caps, label), metadata.caps.last_cap)
            lines.append((f"Capabilities, {label}", " ".join(names) or "none"))
    if metadata.audit is not None:
        session, login = (("unset" if value == NONE_ID else str(value)) for value in metadata.audit)
        lines += [("Audit session", session), ("Login user", login)]
    if metadata.timestamp is not None:
        lines.append(("Time", f"{local_time(metadata.timestamp.realtime_ns)}, number {metadata.timestamp.seqnum}"))
    return lines


def withheld(metadata: Metadata, wanted: int) -> list[str]:
    """The kinds of metadata that were requested with `wanted`, ATTACH_*, and not received."""
    attributes = {c.ATTACH_CONN_DESCRIPTION: "description", c.ATTACH_NAMES: "owned_names"}
    missing: list[str] = []
    for bit, name in ATTACH_FLAGS.items():
        if wanted & bit and bit not in attributes:
            attribute = name.replace("-", "_")
            if getattr(metadata, attribute) is None:
                missing.append(name)
    return missing
