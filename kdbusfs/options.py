"""Parser of mount options (`-o`)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

MS_RDONLY = 1 << 0
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_SYNCHRONOUS = 1 << 4
MS_DIRSYNC = 1 << 7
MS_NOATIME = 1 << 10
MS_NODIRATIME = 1 << 11
MS_SILENT = 1 << 15
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

LOG_LEVELS = ("error", "warning", "info", "debug")

# Option -> flags of mount(2) that it sets, and flags that it clears.
_FLAGS: dict[str, tuple[int, int]] = {
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "atime": (0, MS_NOATIME),
    "noatime": (MS_NOATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "relatime": (MS_RELATIME, 0),
    "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, 0),
    "nostrictatime": (0, MS_STRICTATIME),
    "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME),
    "silent": (MS_SILENT, 0),
    "loud": (0, MS_SILENT),
}

# Options for mount(8) and systemd only, and options that every mount has anyway.
_WITHOUT_EFFECT = frozenset(
    {
        *("defaults", "auto", "noauto", "nofail", "_netdev"),
        *("user", "users", "nouser", "owner", "noowner", "group", "nogroup"),
        *("allow_other", "default_permissions"),
    }
)
_PREFIXES_WITHOUT_EFFECT = ("x-", "X-", "user=", "comment=")

# Options of fusermount and mount(8) that would change behaviour, and are not supported.
_REFUSED = {
    "setuid": "is not supported: the daemon reaches its clients as root; uid= and gid= give the domain an owner",
    "drop_privileges": "is not supported: the daemon reaches its clients as root",
    "remount": "is not supported: umount the domain and mount it again",
}

_MULTIPLES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_ID_MAX = (1 << 32) - 2  # (uid_t)-1 means "no change"
_INT_MAX = (1 << 31) - 1
_BUS1_SLICES_MOST = 1 << 18  # a turn of the core looks at all that a client has
_BUS1_HANDLES_MOST = 1 << 16

# Mode of the root directory -> mode of `control`, as KDBUS_MAKE_ACCESS_* defined them for a domain.
CONTROL_MODES = {0o555: 0o666, 0o550: 0o660, 0o500: 0o600}


class Bus1(enum.Enum):
    """Whether a mount has the file `bus1`."""

    NONE = "no"
    HIDDEN = "hidden"
    LISTED = "listed"


class OptionError(ValueError):
    """An unknown mount option, or one with an invalid value."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Parsed mount options.

    flags: MS_* of mount(2); fsname: source in the mount table, None: the SOURCE argument; subtype: the type is "fuse."
    + subtype; attach_flags_mask: initial value of that parameter, None: default; loglevel: one of LOG_LEVELS; uid,
    gid: owner of the root directory and `control`, None: root; mode: of the root directory, one of CONTROL_MODES;
    max_user_memory: bytes that connections of one user may use in the daemon, None: 3/8 of what is available;
    max_user_fds: descriptors that one user may have in flight, None: derived from the daemon's limit; fd: descriptor
    of /dev/fuse to use instead of a new one; bus1: whether there is a file of bus1; bus1_max_*: what one user
    may have there; keep: whether the mount outlives a daemon that is killed.
    """

    flags: int = MS_NOSUID | MS_NODEV | MS_NOEXEC
    fsname: str | None = None
    subtype: str = "kdbusfs"
    attach_flags_mask: int | None = None
    loglevel: str = "warning"
    uid: int | None = None
    gid: int | None = None
    mode: int = 0o555
    max_user_memory: int | None = None
    max_user_fds: int | None = None
    fd: int | None = None
    bus1: Bus1 = Bus1.HIDDEN
    bus1_max_slices: int = 16384
    bus1_max_handles: int = 65536
    bus1_max_inflight_bytes: int = 16 << 20
    bus1_max_inflight_fds: int = 4096
    keep: bool = False


def parse(texts: Iterable[str], sloppy: bool = False) -> MountOptions:
    """Parse the arguments of all `-o`; later options override earlier ones.  Raises OptionError.

    sloppy: ignore unknown options, as `mount -s`.
    `ro` is passed to the kernel as a flag: opens for writing then fail with EROFS, but a descriptor opened for reading
    accepts all commands.
    """
    options = MountOptions()
    for text in texts:
        for option in text.split(","):
            if option:
                options = _with(options, option, sloppy)
    return options


def _with(options: MountOptions, option: str, sloppy: bool) -> MountOptions:
    """`options` with one more."""
    if option in _FLAGS:
        to_set, to_clear = _FLAGS[option]
        return replace(options, flags=options.flags & ~to_clear | to_set)
    if option in _WITHOUT_EFFECT or option.startswith(_PREFIXES_WITHOUT_EFFECT):
        return options
    if option in ("keep", "nokeep"):
        return replace(options, keep=option == "keep")
    if option == "nobus1":
        return replace(options, bus1=Bus1.NONE)
    name, _, value = option.partition("=")
    if name in _REFUSED:
        raise OptionError(f"mount option '{option}' {_REFUSED[name]}")
    if name not in _VALUES:
        if sloppy:
            return options
        raise OptionError(f"unknown mount option '{option}'; see kdbusfs --help")
    if not value:
        raise OptionError(f"mount option '{name}' needs a value: {name}=...")
    return _VALUES[name](options, value)


def _fsname(options: MountOptions, value: str) -> MountOptions:
    return replace(options, fsname=value)


def _subtype(options: MountOptions, value: str) -> MountOptions:
    return replace(options, subtype=value)


def _loglevel(options: MountOptions, value: str) -> MountOptions:
    if value not in LOG_LEVELS:
        raise OptionError(f"loglevel={value}: must be one of {', '.join(LOG_LEVELS)}")
    return replace(options, loglevel=value)


def _attach_flags_mask(options: MountOptions, value: str) -> MountOptions:
    base = 16 if value[:2] in ("0x", "0X") else 10
    number = _number(value, base)
    if not 0 <= number < 1 << 64:
        raise OptionError(f"attach_flags_mask={value}: must be a number of 64 bits, decimal or 0x...")
    return replace(options, attach_flags_mask=number)


def _uid(options: MountOptions, value: str) -> MountOptions:
    return replace(options, uid=_id("uid", value))


def _gid(options: MountOptions, value: str) -> MountOptions:
    return replace(options, gid=_id("gid", value))


def _mode(options: MountOptions, value: str) -> MountOptions:
    mode = _number(value, 8)
    if mode not in CONTROL_MODES:
        raise OptionError(f"mode={value}: must be 0555, 0550 or 0500; nobody may write to the root of a domain")
    return replace(options, mode=mode)


def _max_user_memory(options: MountOptions, value: str) -> MountOptions:
    digits, suffix = (value[:-1], value[-1]) if value[-1].isalpha() else (value, "")
    size = _number(digits, 10) * _MULTIPLES.get(suffix, 0)
    if not 1 << 20 <= size < 1 << 63:
        raise OptionError(f"max_user_memory={value}: must be at least 1M; bytes, or with K, M, G or T behind it")
    return replace(options, max_user_memory=size)


def _max_user_fds(options: MountOptions, value: str) -> MountOptions:
    count = _number(value, 10)
    if not 0 <= count <= _INT_MAX:
        raise OptionError(f"max_user_fds={value}: must be a number of descriptors")
    return replace(options, max_user_fds=count)


def _bus1(options: MountOptions, value: str) -> MountOptions:
    if value not in (Bus1.HIDDEN.value, Bus1.LISTED.value):
        raise OptionError(f"bus1={value}: must be hidden or listed; nobus1 does without")
    return replace(options, bus1=Bus1(value))


def _bus1_max_slices(options: MountOptions, value: str) -> MountOptions:
    return replace(options, bus1_max_slices=_count("bus1_max_slices", value, _BUS1_SLICES_MOST))


def _bus1_max_handles(options: MountOptions, value: str) -> MountOptions:
    return replace(options, bus1_max_handles=_count("bus1_max_handles", value, _BUS1_HANDLES_MOST))


def _bus1_max_inflight_bytes(options: MountOptions, value: str) -> MountOptions:
    return replace(options, bus1_max_inflight_bytes=_count("bus1_max_inflight_bytes", value, _INT_MAX))


def _bus1_max_inflight_fds(options: MountOptions, value: str) -> MountOptions:
    return replace(options, bus1_max_inflight_fds=_count("bus1_max_inflight_fds", value, _INT_MAX))


def _count(name: str, value: str, most: int) -> int:
    number = _number(value, 10)
    if not 0 <= number <= most:
        raise OptionError(f"{name}={value}: must be a number up to {most}")
    return number


def _fd(options: MountOptions, value: str) -> MountOptions:
    number = _number(value, 10)
    if not 3 <= number <= _INT_MAX:
        raise OptionError(f"fd={value}: must be the number of a descriptor of /dev/fuse, 3 or higher")
    return replace(options, fd=number)


_VALUES: dict[str, Callable[[MountOptions, str], MountOptions]] = {
    "fsname": _fsname,
    "subtype": _subtype,
    "loglevel": _loglevel,
    "attach_flags_mask": _attach_flags_mask,
    "uid": _uid,
    "gid": _gid,
    "mode": _mode,
    "max_user_memory": _max_user_memory,
    "max_user_fds": _max_user_fds,
    "fd": _fd,
    "bus1": _bus1,
    "bus1_max_slices": _bus1_max_slices,
    "bus1_max_handles": _bus1_max_handles,
    "bus1_max_inflight_bytes": _bus1_max_inflight_bytes,
    "bus1_max_inflight_fds": _bus1_max_inflight_fds,
}


def _id(name: str, value: str) -> int:
    number = _number(value, 10)
    if not 0 <= number <= _ID_MAX:
        raise OptionError(f"{name}={value}: must be a number, such as `id` prints")
    return number


def _number(value: str, base: int) -> int:
    """Parse a number strictly: no signs, blanks or underscores.  Returns -1 if it is not one."""
    wellformed = value.isalnum() if base == 16 else value.isdigit()
    try:
        return int(value, base) if value.isascii() and wellformed else -1
    except ValueError:
        return -1
