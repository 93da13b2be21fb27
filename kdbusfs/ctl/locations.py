"""Find buses: the mounts of kdbusfs in /proc/self/mountinfo, the buses below them, and the one that is selected."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from ..base import mountinfo
from .failure import EXIT_DENIED, EXIT_NO_MOUNT, EXIT_NOTHING, EXIT_USAGE, Failure, exit_code_of, explain

MOUNT_TYPE = "fuse.kdbusfs"
MOUNT_TABLE = "/proc/self/mountinfo"
DEFAULT_ENDPOINT = "bus"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the mount table.

    root: the part of the file system that is mounted: all ("/"), a bus or an endpoint; owner: uid of its server.
    """

    path: str
    device: str
    root: str
    kind: str
    owner: int = 0


@dataclass(frozen=True, slots=True)
class BusLocation:
    """Paths of a bus.

    directory: of its endpoints, None if only an endpoint file is mounted; endpoint: the file that connections open.
    """

    name: str
    directory: str | None
    endpoint: str


def parse_mounts(table: str) -> list[Mounted]:
    """Parse a mount table.  Of several mounts at one path, the last is visible."""
    found: dict[str, Mounted] = {}
    for entry in mountinfo.parse(table):
        found.pop(entry.path, None)
        owner = entry.option("user_id") or "0"
        uid = int(owner) if owner.isdigit() else -1
        found[entry.path] = Mounted(entry.path, entry.device, entry.root, entry.type, uid)
    return list(found.values())


def mounts() -> list[Mounted]:
    """Visible mounts of kdbusfs, and bind mounts of parts of them, that root or the own user serves.

    Others are not trusted: with fusermount any user can mount a file system of this type, and never answer.
    """
    with open(MOUNT_TABLE, encoding="utf-8", errors="surrogateescape") as table:
        entries = parse_mounts(table.read())
    return [entry for entry in entries if entry.kind == MOUNT_TYPE and entry.owner in (0, os.geteuid())]


def domains(entries: Iterable[Mounted]) -> list[str]:
    """The paths of whole domains, one for each domain even if it is mounted several times."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.root == "/":
            found.setdefault(entry.device, entry.path)
    return sorted(found.values())


def check_domain(path: str) -> str:
    """The absolute path of the domain at `path`.  Raises Failure if none is mounted there."""
    path = os.path.abspath(path)
    try:
        os.stat(os.path.join(path, "control"))
        if stat.S_ISDIR(os.stat(os.path.join(path, ".kdbusfs")).st_mode):
            return path
    except OSError as error:
        raise _not_there(path, error) from error
    raise Failure(f"'{path}' is not a kdbusfs; see 'kdbusctl tree'", EXIT_NO_MOUNT)


def _not_there(path: str, error: OSError) -> Failure:
    code = exit_code_of(error)
    if code == EXIT_NO_MOUNT:
        return Failure(f"the daemon of '{path}' has ended; 'umount {path}' and mount it again", EXIT_NO_MOUNT)
    if code == EXIT_DENIED:
        return Failure(f"no permission to look into '{path}'", EXIT_DENIED)
    if os.path.isdir(path):
        return Failure(f"'{path}' is not a kdbusfs; mount one with 'kdbusfs SOURCE {path}'", EXIT_NO_MOUNT)
    return Failure(f"there is no kdbusfs at '{path}': {explain(error)}", EXIT_NO_MOUNT)


def only_domain() -> str:
    """The path of the only domain.  Raises Failure if there is none, or if there are several."""
    found = domains(mounts())
    if len(found) == 1:
        return found[0]
    if found:
        what = f"several domains are mounted; select one with --mount or KDBUSFS_MOUNT: {', '.join(found)}"
        raise Failure(what, EXIT_USAGE)
    hint = "mount one with 'kdbusfs SOURCE MOUNTPOINT', or give --bus"
    raise Failure(f"no kdbusfs is mounted here; {hint}", EXIT_NO_MOUNT)


def bus_names(domain: str) -> list[str]:
    """The names of the buses of a domain.  Raises OSError."""
    with os.scandir(domain) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir(follow_symlinks=False))


def endpoint_names(directory: str) -> list[str]:
    """The names of the endpoints of a bus, the default one first.  Raises OSError."""
    return sorted(os.listdir(directory), key=lambda name: (name != DEFAULT_ENDPOINT, name))


def may_use(endpoint: str) -> bool:
    """Whether this process may open an endpoint file."""
    return os.access(endpoint, os.R_OK | os.W_OK, effective_ids=True)


def all_buses(entries: Iterable[Mounted] | None = None) -> list[BusLocation]:
    """All buses of all mounts, bind mounts included, whether they may be entered or not."""
    entries = mounts() if entries is None else entries
    found: list[BusLocation] = []
    for domain in domains(entries):
        try:
            found += [below(domain, name) for name in bus_names(domain)]
        except OSError:
            continue  # the daemon of this mount has ended
    for entry in entries:
        parts = entry.root.strip("/").split("/")
        if len(parts) == 2:
            found.append(BusLocation(parts[0], None, entry.path))
        elif parts != [""] and parts[0][0] != ".":
            found.append(BusLocation(parts[0], entry.path, os.path.join(entry.path, DEFAULT_ENDPOINT)))
    return found


def below(domain: str, name: str) -> BusLocation:
    """The location of bus `name` in a domain."""
    directory = os.path.join(domain, name)
    return BusLocation(name, directory, os.path.join(directory, DEFAULT_ENDPOINT))


def find_bus(mount: str | None, bus: str | None, endpoint: str | None) -> BusLocation:
    """Select a bus as `kdbusctl --help` says.  Raises Failure.

    mount: the path of a domain; bus: a path or a name; endpoint: the name of one of its endpoints.
    """
    if bus is not None and "/" in bus:
        location, is_directory = _at_path(bus)
        if endpoint is not None and not is_directory:
            raise Failure(f"'{bus}' is an endpoint already; omit --endpoint", EXIT_USAGE)
        return _with_endpoint(location, endpoint)
    if mount is not None:
        domain = check_domain(mount)
        try:
            candidates = [below(domain, name) for name in bus_names(domain)]
        except OSError as error:
            raise _not_there(domain, error) from error
        where = f"in '{domain}'"
    else:
        candidates = all_buses()
        where = "in any mount of kdbusfs"
        if not candidates:
            check_domain(only_domain())
    return _with_endpoint(_choose(candidates, bus, where), endpoint)


def _choose(candidates: list[BusLocation], name: str | None, where: str) -> BusLocation:
    """One of `candidates`: by name if given, else the only one that this process may enter."""
    if name is not None:
        own = f"{os.geteuid()}-{name}"
        for fits in (
            [location for location in candidates if location.name == name],
            [location for location in candidates if location.name == own],
            [location for location in candidates if location.name.partition("-")[2] == name],
        ):
            if fits:
                return _only(fits, f"several buses '{name}' {where}")
        raise Failure(f"there is no bus '{name}' {where}; 'kdbusctl tree' lists the buses", EXIT_NOTHING)
    if not candidates:
        raise Failure(f"there is no bus {where}; 'kdbusctl make-bus NAME' makes one", EXIT_NOTHING)
    usable = [location for location in candidates if may_use(location.endpoint)]
    if not usable:
        if len(candidates) == 1:
            raise Failure(f"no permission to enter bus '{candidates[0].name}', the only one {where}", EXIT_DENIED)
        raise Failure(f"no permission to enter any of the {len(candidates)} buses {where}", EXIT_DENIED)
    return _only(usable, f"several buses {where}")


def _only(locations: list[BusLocation], several: str) -> BusLocation:
    if len(locations) == 1:
        return locations[0]
    paths = ", ".join(sorted(location.directory or location.endpoint for location in locations)[:8])
    more = f" and {len(locations) - 8} more" if len(locations) > 8 else ""
    raise Failure(f"{several}; select one with --bus: {paths}{more}", EXIT_USAGE)


def _at_path(path: str) -> tuple[BusLocation, bool]:
    """The bus at the path of an endpoint file or bus directory, and whether it is a directory."""
    path = os.path.abspath(path)
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        code = exit_code_of(error)
        if code == EXIT_NO_MOUNT:
            raise _not_there(path, error) from error
        raise Failure(f"cannot reach the bus at '{path}': {explain(error)}", code) from error
    if not is_directory:
        directory = os.path.dirname(path)
        in_domain = os.path.exists(os.path.join(os.path.dirname(directory), "control"))
        return BusLocation(os.path.basename(directory), directory if in_domain else None, path), False
    if os.path.exists(os.path.join(path, "control")):
        raise Failure(f"'{path}' is a mount, not a bus; use --mount {path}", EXIT_USAGE)
    return BusLocation(os.path.basename(path), path, os.path.join(path, DEFAULT_ENDPOINT)), True


def _with_endpoint(location: BusLocation, endpoint: str | None) -> BusLocation:
    """The same bus, entered through another endpoint."""
    if endpoint is None:
        return location
    if location.directory is None:
        raise Failure(f"'{location.endpoint}' is an endpoint already; omit --endpoint", EXIT_USAGE)
    names = (endpoint, f"{os.geteuid()}-{endpoint}")
    for name in names:
        path = os.path.join(location.directory, name)
        if "/" not in endpoint and os.path.exists(path):
            return BusLocation(location.name, location.directory, path)
    raise Failure(f"bus '{location.name}' has no endpoint '{endpoint}'", EXIT_NOTHING)
