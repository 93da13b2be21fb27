"""kdbus.h against the specification's table and against kdbusfs.abi: names, numbers, sizes and offsets."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from kdbusfs.abi.v3 import commands, constants, layouts

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "kdbusfs" / "include"
EXAMPLES = ROOT / "docs" / "examples"
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{INCLUDE}")

# "ABI facts" of the specification, and what its rows say of the others (LAY-8, LAY-14, META-6 to META-17).
SIZES = {
    "kdbus_msg": 64,
    "kdbus_msg_info": 24,
    "kdbus_cmd_make": 32,
    "kdbus_cmd_name": 32,
    "kdbus_cmd_update": 32,
    "kdbus_cmd_hello": 104,
    "kdbus_cmd_send": 72,
    "kdbus_cmd_recv": 72,
    "kdbus_cmd_free": 40,
    "kdbus_cmd_match": 40,
    "kdbus_cmd_name_list": 48,
    "kdbus_cmd_info": 56,
    "kdbus_info": 24,
    "kdbus_name_info": 24,
    "kdbus_name_list": 8,
    "kdbus_item_list": 8,
    "kdbus_item": 48,  # with room for the longest payload struct
    "kdbus_notify_name_change": 32,
    "kdbus_notify_id_change": 16,
    "kdbus_vec": 16,
    "kdbus_memfd": 24,
    "kdbus_bloom_parameter": 16,
    "kdbus_bloom_filter": 8,
    "kdbus_policy_access": 24,
    "kdbus_creds": 32,
    "kdbus_pids": 24,
    "kdbus_caps": 4,
    "kdbus_audit": 8,
    "kdbus_timestamp": 24,
    "kdbus_name": 8,
}

_GENERIC = "size flags kernel_flags return_flags"
LAYOUTS: dict[str, tuple[struct.Struct, str]] = {
    "kdbus_item": (layouts.ITEM_HEADER, "size type"),
    "kdbus_msg": (
        layouts.MSG,
        "size flags priority dst_id src_id payload_type cookie timeout_ns",
    ),
    "kdbus_msg_info": (layouts.MSG_INFO, "offset msg_size return_flags"),
    "kdbus_cmd_hello": (
        layouts.CMD_HELLO,
        f"{_GENERIC} attach_flags_send attach_flags_recv bus_flags id pool_size offset items_size id128",
    ),
    "kdbus_cmd_send": (
        layouts.CMD_SEND,
        "size flags kernel_flags kernel_msg_flags return_flags msg_address",
    ),
    "kdbus_cmd_recv": (
        layouts.CMD_RECV,
        f"{_GENERIC} priority dropped_msgs msg.offset msg.msg_size msg.return_flags",
    ),
    "kdbus_cmd_info": (layouts.CMD_INFO, f"{_GENERIC} id offset info_size"),
    "kdbus_cmd_name_list": (layouts.CMD_NAME_LIST, f"{_GENERIC} offset list_size"),
    "kdbus_vec": (layouts.VEC, "size offset"),
    "kdbus_memfd": (layouts.MEMFD, "start size fd __pad"),
    "kdbus_bloom_parameter": (layouts.BLOOM_PARAMETER, "size n_hash"),
    "kdbus_policy_access": (layouts.POLICY_ACCESS, "type access id"),
    "kdbus_creds": (layouts.CREDS, "uid euid suid fsuid gid egid sgid fsgid"),
    "kdbus_pids": (layouts.PIDS, "pid tid ppid"),
    "kdbus_audit": (layouts.AUDIT, "sessionid loginuid"),
    "kdbus_timestamp": (layouts.TIMESTAMP, "seqnum monotonic_ns realtime_ns"),
    "kdbus_info": (layouts.INFO, "size id flags"),
    "kdbus_name_info": (layouts.NAME_INFO, "size conn_flags owner_id"),
    "kdbus_notify_name_change": (layouts.NAME_CHANGE, "old_id.id old_id.flags new_id.id new_id.flags"),
    "kdbus_notify_id_change": (layouts.ID_CHANGE, "id flags"),
}

COMMAND_STRUCTS = {
    "BUS_MAKE": "kdbus_cmd_make",
    "ENDPOINT_MAKE": "kdbus_cmd_make",
    "HELLO": "kdbus_cmd_hello",
    "SEND": "kdbus_cmd_send",
    "RECV": "kdbus_cmd_recv",
    "FREE": "kdbus_cmd_free",
    "NAME_ACQUIRE": "kdbus_cmd_name",
    "NAME_RELEASE": "kdbus_cmd_name",
    "NAME_LIST": "kdbus_cmd_name_list",
    "CONN_INFO": "kdbus_cmd_info",
    "CONN_UPDATE": "kdbus_cmd_update",
    "BUS_CREATOR_INFO": "kdbus_cmd_info",
    "ENDPOINT_UPDATE": "kdbus_cmd_update",
    "MATCH_ADD": "kdbus_cmd_match",
    "MATCH_REMOVE": "kdbus_cmd_match",
}

# Commands whose struct travels back with the answer (GEN-11).
TRAVEL_BACK = {"HELLO", "SEND", "RECV", "NAME_ACQUIRE", "NAME_LIST", "CONN_INFO", "BUS_CREATOR_INFO"}

# Members whose offset the code names apart from a whole layout.
NAMED_OFFSETS = {
    ("kdbus_cmd_send", "reply"): layouts.CMD_SEND_REPLY_OFFSET,
    ("kdbus_cmd_send", "kernel_msg_flags"): layouts.CMD_SEND_KERNEL_MSG_FLAGS_OFFSET,
    ("kdbus_cmd_send", "msg_address"): layouts.CMD_SEND_MSG_ADDRESS_OFFSET,
    ("kdbus_cmd_recv", "dropped_msgs"): layouts.CMD_RECV_DROPPED_OFFSET,
    ("kdbus_cmd_recv", "msg.return_flags"): layouts.CMD_RECV_MSG_RETURN_FLAGS_OFFSET,
    ("kdbus_memfd", "fd"): layouts.MEMFD_FD_OFFSET,
    ("kdbus_cmd_free", "offset"): 8,
    ("kdbus_cmd_match", "cookie"): 8,
    ("kdbus_item", "data"): layouts.ITEM_HEADER_SIZE,
    ("kdbus_msg", "cookie_reply"): 56,
    ("kdbus_msg", "items"): layouts.MSG_SIZE,
}

# Of kdbusfs.abi.constants alone: masks put together from those of the header.
COMBINED = {"U64_MAX", "ITEM_UNKNOWN", "ATTACH_PROCESS", "MSG_FLAGS_ALL", "HELLO_SPECIAL"}


def header_name(name: str) -> str:
    return f"_KDBUS_{name}" if name in ("ATTACH_ALL", "ATTACH_ANY") else f"KDBUS_{name}"


ABI_CONSTANTS = {
    header_name(name): value
    for name, value in vars(constants).items()
    if name.isupper() and isinstance(value, int) and name not in COMBINED
}


def header_text() -> str:
    """The header without comments."""
    return re.sub(r"/\*.*?\*/", "", (INCLUDE / "kdbus.h").read_text(), flags=re.DOTALL)


def offsets(layout: struct.Struct, members: str) -> dict[str, int]:
    """Where each of `members` lies in `layout`, which has no padding."""
    formats = re.findall(r"\d+s|[A-Za-z]", layout.format)
    names = members.split()
    assert len(formats) == len(names), members
    return {name: struct.calcsize("<" + "".join(formats[:i])) for i, name in enumerate(names)}


def program() -> str:
    """C and C++ source that prints every number as `kind name value`."""
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "kdbus.h"', "int main(void) {"]

    def show(label: str, expression: str) -> None:
        lines.append(f'printf("{label} %llu\\n", (unsigned long long)({expression}));')

    for name in ABI_CONSTANTS:
        show(f"constant {name}", name)
    for name in SIZES:
        show(f"size {name}", f"sizeof(struct {name})")
    wanted = {(name, member) for name, (_, members) in LAYOUTS.items() for member in members.split()}
    wanted |= set(NAMED_OFFSETS)
    for name in COMMAND_STRUCTS.values():
        wanted |= {(name, member) for member in ("size", "flags", "kernel_flags", "return_flags", "items")}
    for name, member in sorted(wanted):
        show(f"offset {name}.{member}", f"offsetof(struct {name}, {member})")
    lines += ["return 0; }", ""]
    return "\n".join(lines)


COMPILERS = {
    "c99": ("gcc", "-std=c99"),
    "c11": ("gcc", "-std=c11"),
    "gnu17": ("gcc", "-std=gnu17"),
    "c++11": ("g++", "-std=c++11", "-Wno-invalid-offsetof"),
    "c++20": ("g++", "-std=c++20", "-Wno-invalid-offsetof"),
    "32 bit": ("gcc", "-std=c11", "-m32"),
}


def needs(command: tuple[str, ...], directory: Path) -> None:
    """Skip where this machine cannot build for that target at all, whatever the header says."""
    suffix = "cc" if command[0] == "g++" else "c"
    source = directory / f"empty.{suffix}"
    source.write_text("#include <stdio.h>\n#include <linux/types.h>\nint main(void) { return 0; }\n")
    target = [option for option in command[1:] if option.startswith("-m")]
    try:
        built = subprocess.run(
            [command[0], *target, str(source), "-o", str(directory / "empty")],
            capture_output=True,
            timeout=120,
        )
    except FileNotFoundError:
        pytest.skip(f"no {command[0]} here")
    if built.returncode:
        pytest.skip(f"{' '.join([command[0], *target])} does not build an empty program here")


@pytest.fixture(scope="module", params=COMPILERS)
def values(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the header says, by `kind name`, as each compiler sees it; it compiles without a warning."""
    command = COMPILERS[request.param]
    directory = tmp_path_factory.mktemp("header")
    needs(command, directory)
    source = directory / ("values.cc" if command[0] == "g++" else "values.c")
    source.write_text(program())
    binary = directory / "values"
    built = subprocess.run(
        [*command, *STRICT, str(source), "-o", str(binary)], capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 0, built.stderr
    output = subprocess.run([str(binary)], capture_output=True, text=True, timeout=120, check=True).stdout
    return {label: int(value) for label, value in (line.rsplit(" ", 1) for line in output.splitlines())}


def test_constants_have_the_values_of_the_abi(values: dict[str, int]) -> None:
    assert {name: values[f"constant {name}"] for name in ABI_CONSTANTS} == ABI_CONSTANTS


def test_structs_have_the_sizes_of_the_specification(values: dict[str, int]) -> None:
    assert {name: values[f"size {name}"] for name in SIZES} == SIZES


def test_members_lie_where_the_layouts_of_the_abi_have_them(values: dict[str, int]) -> None:
    for name, (layout, members) in LAYOUTS.items():
        expected = offsets(layout, members)
        assert {member: values[f"offset {name}.{member}"] for member in expected} == expected, name
        if name not in ("kdbus_item", "kdbus_cmd_send"):  # which go on behind the layout
            assert values[f"size {name}"] == layout.size, name
    found = {key: values[f"offset {key[0]}.{key[1]}"] for key in NAMED_OFFSETS}
    assert found == NAMED_OFFSETS


def test_commands_agree_with_the_command_table(values: dict[str, int]) -> None:
    for number, command in commands.COMMANDS.items():
        name = COMMAND_STRUCTS[command.name]
        assert values[f"constant KDBUS_CMD_{command.name}"] == number
        assert values[f"size {name}"] == command.size == number >> 16 & 0x3FFF
        assert values[f"offset {name}.size"] == 0
        assert values[f"offset {name}.items"] == command.size
        assert values[f"offset {name}.flags"] == command.flags_offset
        assert values[f"offset {name}.kernel_flags"] == 8 * command.kernel_flags_word
        assert values[f"offset {name}.return_flags"] == 8 * command.return_flags_word
        assert number >> 30 == (3 if command.name in TRAVEL_BACK else 1), "direction"


def test_the_header_names_nothing_that_the_abi_lacks() -> None:
    own = {"KDBUS_IOCTL_MAGIC"}
    marks = {"_KDBUS_UAPI_H_"}
    names = set(re.findall(r"\b_?KDBUS_[A-Z0-9_]+\b", header_text())) - marks - own
    bounds = {name for name in names if name.endswith(("_NULL", "_BASE"))}
    assert names - bounds == set(ABI_CONSTANTS)


def test_every_struct_of_the_header_is_looked_at() -> None:
    structs = set(re.findall(r"^struct (\w+) \{", header_text(), flags=re.MULTILINE))
    assert structs == set(SIZES)
    assert {command.name for command in commands.COMMANDS.values()} == set(COMMAND_STRUCTS)


@pytest.mark.parametrize("target", [(), ("-m32",)], ids=["native", "32 bit"])
@pytest.mark.parametrize("source", sorted(EXAMPLES.glob("*.c")), ids=lambda path: path.stem)
def test_the_examples_need_nothing_but_the_header(
    source: Path, target: tuple[str, ...], tmp_path: Path
) -> None:
    needs(("gcc", *target), tmp_path)
    built = subprocess.run(
        ["gcc", "-std=gnu11", "-O2", *target, *STRICT, str(source), "-o", str(tmp_path / source.stem)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    usage = subprocess.run([str(tmp_path / source.stem)], capture_output=True, text=True, timeout=120)
    assert usage.returncode == 2
    assert usage.stderr.startswith("usage: ")
