"""kdbus-last.h against the specification's tables and against kdbusfs.abi.last: names, numbers, sizes and offsets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kdbusfs.abi.last import commands, constants, items, layouts

from .test_header import COMPILERS, INCLUDE, STRICT, needs, offsets

# Tables of the specification: size, then members with their offsets.
STRUCTS = {
    "kdbus_notify_id_change": (16, "id@0 flags@8"),
    "kdbus_notify_name_change": (32, "old_id@0 new_id@16 name@32"),
    "kdbus_creds": (64, "uid@0 euid@8 suid@16 fsuid@24 gid@32 egid@40 sgid@48 fsgid@56"),
    "kdbus_pids": (24, "pid@0 tid@8 ppid@16"),
    "kdbus_caps": (8, "last_cap@0 caps@4"),
    "kdbus_audit": (8, "sessionid@0 loginuid@4"),
    "kdbus_timestamp": (24, "seqnum@0 monotonic_ns@8 realtime_ns@16"),
    "kdbus_vec": (16, "size@0 address@8 offset@8"),
    "kdbus_bloom_parameter": (16, "size@0 n_hash@8"),
    "kdbus_bloom_filter": (8, "generation@0 data@8"),
    "kdbus_memfd": (24, "start@0 size@8 fd@16 __pad@20"),
    "kdbus_name": (8, "flags@0 name@8"),
    "kdbus_policy_access": (24, "type@0 access@8 id@16"),
    "kdbus_msg": (
        64,
        "size@0 flags@8 priority@16 dst_id@24 src_id@32 payload_type@40 cookie@48 timeout_ns@56 cookie_reply@56 "
        "items@64",
    ),
    "kdbus_msg_info": (24, "offset@0 msg_size@8 return_flags@16"),
    "kdbus_cmd_send": (56, "size@0 flags@8 return_flags@16 msg_address@24 reply@32 items@56"),
    "kdbus_cmd_recv": (64, "size@0 flags@8 return_flags@16 priority@24 dropped_msgs@32 msg@40 items@64"),
    "kdbus_cmd_free": (32, "size@0 flags@8 return_flags@16 offset@24 items@32"),
    "kdbus_cmd_hello": (
        96,
        "size@0 flags@8 return_flags@16 attach_flags_send@24 attach_flags_recv@32 bus_flags@40 id@48 pool_size@56 "
        "offset@64 items_size@72 id128@80 items@96",
    ),
    "kdbus_info": (24, "size@0 id@8 flags@16 items@24"),
    "kdbus_cmd_list": (40, "size@0 flags@8 return_flags@16 offset@24 list_size@32 items@40"),
    "kdbus_cmd_info": (56, "size@0 flags@8 return_flags@16 id@24 attach_flags@32 offset@40 info_size@48 items@56"),
    "kdbus_cmd_match": (32, "size@0 flags@8 return_flags@16 cookie@24 items@32"),
    "kdbus_cmd": (24, "size@0 flags@8 return_flags@16 items@24"),
}

NUMBERS = (
    "_POLICY_ACCESS_NULL=0x0 POLICY_ACCESS_USER=0x1 POLICY_ACCESS_GROUP=0x2 POLICY_ACCESS_WORLD=0x3 "
    "POLICY_SEE=0x0 POLICY_TALK=0x1 POLICY_OWN=0x2 "
    "ATTACH_TIMESTAMP=0x1 ATTACH_CREDS=0x2 ATTACH_PIDS=0x4 ATTACH_AUXGROUPS=0x8 ATTACH_NAMES=0x10 "
    "ATTACH_TID_COMM=0x20 ATTACH_PID_COMM=0x40 ATTACH_EXE=0x80 ATTACH_CMDLINE=0x100 ATTACH_CGROUP=0x200 "
    "ATTACH_CAPS=0x400 ATTACH_SECLABEL=0x800 ATTACH_AUDIT=0x1000 ATTACH_CONN_DESCRIPTION=0x2000 "
    "_ATTACH_ALL=0x3fff _ATTACH_ANY=0xffffffffffffffff "
    "_ITEM_NULL=0x0 _ITEM_USER_BASE=0x1 ITEM_NEGOTIATE=0x1 ITEM_PAYLOAD_VEC=0x2 ITEM_PAYLOAD_OFF=0x3 "
    "ITEM_PAYLOAD_MEMFD=0x4 ITEM_FDS=0x5 ITEM_CANCEL_FD=0x6 ITEM_BLOOM_PARAMETER=0x7 ITEM_BLOOM_FILTER=0x8 "
    "ITEM_BLOOM_MASK=0x9 ITEM_DST_NAME=0xa ITEM_MAKE_NAME=0xb ITEM_ATTACH_FLAGS_SEND=0xc "
    "ITEM_ATTACH_FLAGS_RECV=0xd ITEM_ID=0xe ITEM_NAME=0xf ITEM_DST_ID=0x10 _ITEM_ATTACH_BASE=0x1000 "
    "ITEM_TIMESTAMP=0x1000 ITEM_CREDS=0x1001 ITEM_PIDS=0x1002 ITEM_AUXGROUPS=0x1003 ITEM_OWNED_NAME=0x1004 "
    "ITEM_TID_COMM=0x1005 ITEM_PID_COMM=0x1006 ITEM_EXE=0x1007 ITEM_CMDLINE=0x1008 ITEM_CGROUP=0x1009 "
    "ITEM_CAPS=0x100a ITEM_SECLABEL=0x100b ITEM_AUDIT=0x100c ITEM_CONN_DESCRIPTION=0x100d "
    "_ITEM_POLICY_BASE=0x2000 ITEM_POLICY_ACCESS=0x2000 _ITEM_KERNEL_BASE=0x8000 ITEM_NAME_ADD=0x8000 "
    "ITEM_NAME_REMOVE=0x8001 ITEM_NAME_CHANGE=0x8002 ITEM_ID_ADD=0x8003 ITEM_ID_REMOVE=0x8004 "
    "ITEM_REPLY_TIMEOUT=0x8005 ITEM_REPLY_DEAD=0x8006 "
    "MSG_EXPECT_REPLY=0x1 MSG_NO_AUTO_START=0x2 MSG_SIGNAL=0x4 "
    "PAYLOAD_KERNEL=0x0 PAYLOAD_DBUS=0x4442757344427573 "
    "SEND_SYNC_REPLY=0x1 "
    "RECV_PEEK=0x1 RECV_DROP=0x2 RECV_USE_PRIORITY=0x4 "
    "RECV_RETURN_INCOMPLETE_FDS=0x1 RECV_RETURN_DROPPED_MSGS=0x2 "
    "HELLO_ACCEPT_FD=0x1 HELLO_ACTIVATOR=0x2 HELLO_POLICY_HOLDER=0x4 HELLO_MONITOR=0x8 "
    "LIST_UNIQUE=0x1 LIST_NAMES=0x2 LIST_ACTIVATORS=0x4 LIST_QUEUED=0x8 "
    "MATCH_REPLACE=0x1 "
    "MAKE_ACCESS_GROUP=0x1 MAKE_ACCESS_WORLD=0x2 "
    "NAME_REPLACE_EXISTING=0x1 NAME_ALLOW_REPLACEMENT=0x2 NAME_QUEUE=0x4 NAME_IN_QUEUE=0x8 NAME_ACTIVATOR=0x10 "
    "NAME_PRIMARY=0x20 NAME_ACQUIRED=0x40 "
    "IOCTL_MAGIC=0x95 SRC_ID_KERNEL=0x0 DST_ID_NAME=0x0 MATCH_ID_ANY=0xffffffffffffffff "
    "DST_ID_BROADCAST=0xffffffffffffffff FLAG_NEGOTIATE=0x8000000000000000 "
)
"""NAME=value."""

REQUESTS = {
    "BUS_MAKE": (0x40189500, "IOW", "kdbus_cmd"),
    "ENDPOINT_MAKE": (0x40189510, "IOW", "kdbus_cmd"),
    "ENDPOINT_UPDATE": (0x40189511, "IOW", "kdbus_cmd"),
    "HELLO": (0xC0609580, "IOWR", "kdbus_cmd_hello"),
    "UPDATE": (0x40189581, "IOW", "kdbus_cmd"),
    "BYEBYE": (0x40189582, "IOW", "kdbus_cmd"),
    "FREE": (0x40209583, "IOW", "kdbus_cmd_free"),
    "CONN_INFO": (0x80389584, "IOR", "kdbus_cmd_info"),
    "BUS_CREATOR_INFO": (0x80389585, "IOR", "kdbus_cmd_info"),
    "LIST": (0x80289586, "IOR", "kdbus_cmd_list"),
    "SEND": (0x40389590, "IOW", "kdbus_cmd_send"),
    "RECV": (0x80409591, "IOR", "kdbus_cmd_recv"),
    "NAME_ACQUIRE": (0x401895A0, "IOW", "kdbus_cmd"),
    "NAME_RELEASE": (0x401895A1, "IOW", "kdbus_cmd"),
    "MATCH_ADD": (0x402095B0, "IOW", "kdbus_cmd_match"),
    "MATCH_REMOVE": (0x402095B1, "IOW", "kdbus_cmd_match"),
}
"""Number, direction, struct."""

LAYOUTS = {
    "kdbus_item": (layouts.ITEM_HEADER, "size type"),
    "kdbus_msg": (layouts.MSG, "size flags priority dst_id src_id payload_type cookie timeout_ns"),
    "kdbus_msg_info": (layouts.MSG_INFO, "offset msg_size return_flags"),
    "kdbus_cmd": (layouts.CMD, "size flags return_flags"),
    "kdbus_cmd_hello": (
        layouts.CMD_HELLO,
        "size flags return_flags attach_flags_send attach_flags_recv bus_flags id pool_size offset items_size id128",
    ),
    "kdbus_cmd_send": (
        layouts.CMD_SEND,
        "size flags return_flags msg_address reply.offset reply.msg_size reply.return_flags",
    ),
    "kdbus_cmd_recv": (
        layouts.CMD_RECV,
        "size flags return_flags priority dropped_msgs msg.offset msg.msg_size msg.return_flags",
    ),
    "kdbus_cmd_free": (layouts.CMD_FREE, "size flags return_flags offset"),
    "kdbus_cmd_info": (layouts.CMD_INFO, "size flags return_flags id attach_flags offset info_size"),
    "kdbus_cmd_list": (layouts.CMD_LIST, "size flags return_flags offset list_size"),
    "kdbus_cmd_match": (layouts.CMD_MATCH, "size flags return_flags cookie"),
    "kdbus_vec": (layouts.VEC, "size offset"),
    "kdbus_memfd": (layouts.MEMFD, "start size fd __pad"),
    "kdbus_bloom_parameter": (layouts.BLOOM_PARAMETER, "size n_hash"),
    "kdbus_policy_access": (layouts.POLICY_ACCESS, "type access id"),
    "kdbus_creds": (layouts.CREDS, "uid euid suid fsuid gid egid sgid fsgid"),
    "kdbus_pids": (layouts.PIDS, "pid tid ppid"),
    "kdbus_audit": (layouts.AUDIT, "sessionid loginuid"),
    "kdbus_timestamp": (layouts.TIMESTAMP, "seqnum monotonic_ns realtime_ns"),
    "kdbus_info": (layouts.INFO, "size id flags"),
    "kdbus_notify_name_change": (layouts.NAME_CHANGE, "old_id.id old_id.flags new_id.id new_id.flags"),
    "kdbus_notify_id_change": (layouts.ID_CHANGE, "id flags"),
}

# Members whose offset the code names apart from a whole layout.
NAMED_OFFSETS = {
    ("kdbus_cmd", "flags"): layouts.CMD_FLAGS_OFFSET,
    ("kdbus_cmd", "return_flags"): layouts.CMD_RETURN_FLAGS_OFFSET,
    ("kdbus_cmd_send", "msg_address"): layouts.CMD_SEND_MSG_ADDRESS_OFFSET,
    ("kdbus_cmd_send", "reply"): layouts.CMD_SEND_REPLY_OFFSET,
    ("kdbus_cmd_recv", "priority"): layouts.CMD_RECV_PRIORITY_OFFSET,
    ("kdbus_cmd_recv", "dropped_msgs"): layouts.CMD_RECV_DROPPED_OFFSET,
    ("kdbus_cmd_recv", "msg"): layouts.CMD_RECV_MSG_OFFSET,
    ("kdbus_cmd_free", "offset"): layouts.CMD_FREE_OFFSET,
    ("kdbus_cmd_info", "id"): layouts.CMD_INFO_ID_OFFSET,
    ("kdbus_cmd_info", "attach_flags"): layouts.CMD_INFO_ATTACH_FLAGS_OFFSET,
    ("kdbus_cmd_info", "offset"): layouts.CMD_INFO_OFFSET,
    ("kdbus_cmd_list", "offset"): layouts.CMD_LIST_OFFSET,
    ("kdbus_cmd_match", "cookie"): layouts.CMD_MATCH_COOKIE_OFFSET,
    ("kdbus_cmd_hello", "attach_flags_send"): layouts.CMD_HELLO_ATTACH_SEND_OFFSET,
    ("kdbus_cmd_hello", "attach_flags_recv"): layouts.CMD_HELLO_ATTACH_RECV_OFFSET,
    ("kdbus_cmd_hello", "bus_flags"): layouts.CMD_HELLO_BUS_FLAGS_OFFSET,
    ("kdbus_cmd_hello", "id"): layouts.CMD_HELLO_ID_OFFSET,
    ("kdbus_cmd_hello", "pool_size"): layouts.CMD_HELLO_POOL_SIZE_OFFSET,
    ("kdbus_cmd_hello", "offset"): layouts.CMD_HELLO_OFFSET,
    ("kdbus_cmd_hello", "items_size"): layouts.CMD_HELLO_ITEMS_SIZE_OFFSET,
    ("kdbus_cmd_hello", "id128"): layouts.CMD_HELLO_ID128_OFFSET,
    ("kdbus_memfd", "fd"): layouts.MEMFD_FD_OFFSET,
}


def numbers() -> dict[str, int]:
    """Of the specification, by the name that a program has for them."""
    found: dict[str, int] = {}
    for pair in NUMBERS.split():
        name, value = pair.split("=")
        found[f"_KDBUS{name}" if name.startswith("_") else f"KDBUS_{name}"] = int(value, 16)
    return found


def members(name: str) -> dict[str, int]:
    return {member: int(at) for member, at in (pair.split("@") for pair in STRUCTS[name][1].split())}


def program() -> str:
    """C and C++ source that prints every number as `kind name value`."""
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "kdbus-last.h"', "int main(void) {"]

    def show(label: str, expression: str) -> None:
        lines.append(f'printf("{label} %llu\\n", (unsigned long long)({expression}));')

    for name in [*numbers(), *(f"KDBUS_CMD_{name}" for name in REQUESTS)]:
        show(f"constant {name}", name)
    for name in STRUCTS:
        show(f"size {name}", f"sizeof(struct {name})")
    wanted = {(name, member) for name in STRUCTS for member in members(name)} | set(NAMED_OFFSETS)
    wanted |= {(name, member) for name, (_, named) in LAYOUTS.items() for member in named.split()}
    wanted |= {(struct, "items") for _, _, struct in REQUESTS.values()}
    for name, member in sorted(wanted):
        show(f"offset {name}.{member}", f"offsetof(struct {name}, {member})")
    lines += ["return 0; }", ""]
    return "\n".join(lines)


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


def test_l_118_the_header_has_the_numbers_of_the_specification(values: dict[str, int]) -> None:
    """L-19, L-31, L-49, L-102: constants, requests, sizes, offsets"""
    for name, value in numbers().items():
        assert values[f"constant {name}"] == value, name
    for name, (number, _, struct) in REQUESTS.items():
        assert values[f"constant KDBUS_CMD_{name}"] == number, name
        assert values[f"size {struct}"] == values[f"offset {struct}.items"] == number >> 16 & 0x3FFF
    for name, (size, _) in STRUCTS.items():
        assert values[f"size {name}"] == size, name
        for member, at in members(name).items():
            assert values[f"offset {name}.{member}"] == at, f"{name}.{member}"


def test_l_31_49_118_the_layouts_of_the_abi_are_those_of_the_header(values: dict[str, int]) -> None:
    for name, (layout, named) in LAYOUTS.items():
        expected = offsets(layout, named)
        assert {member: values[f"offset {name}.{member}"] for member in expected} == expected, name
        if name != "kdbus_item":
            assert values[f"size {name}"] == layout.size, name
    assert {key: values[f"offset {key[0]}.{key[1]}"] for key in NAMED_OFFSETS} == NAMED_OFFSETS


def test_l_19_the_abi_has_the_numbers_of_the_specification() -> None:
    known = numbers()
    own = {name: value for name, value in vars(constants).items() if name.isupper() and isinstance(value, int)}
    combined = {"U64_MAX", "ATTACH_PROCESS", "MSG_FLAGS_ALL", "HELLO_SPECIAL"}
    for name, value in own.items():
        if name in combined:
            continue
        if name.startswith("CMD_"):
            assert REQUESTS[name.removeprefix("CMD_")][0] == value
            continue
        assert known[f"_KDBUS_{name}" if name in ("ATTACH_ALL", "ATTACH_ANY") else f"KDBUS_{name}"] == value, name
    bounds = {
        name for name in known if name.startswith("_KDBUS") and name not in ("_KDBUS_ATTACH_ALL", "_KDBUS_ATTACH_ANY")
    }
    assert {f"KDBUS_{name}" for name in own} | {f"_KDBUS_{name}" for name in own} >= set(known) - bounds - {
        "KDBUS_IOCTL_MAGIC"
    }


def test_l_10_18_every_command_is_in_the_table() -> None:
    assert {command.name: command.number for command in commands.COMMANDS.values()} == {
        name: number for name, (number, _, _) in REQUESTS.items()
    }
    for command in commands.COMMANDS.values():
        assert command.size == command.number >> 16 & 0x3FFF
        assert command.max_size == 32768
        assert command.flags_offset == 8
        assert command.flags & constants.FLAG_NEGOTIATE
        direction = {1: "IOW", 2: "IOR", 3: "IOWR"}[command.number >> 30]
        assert REQUESTS[command.name][1] == direction


def test_the_core_has_a_name_for_every_kind_of_item() -> None:
    """L-19"""
    assert set(constants.NEUTRAL.values()) == set(items.NUMBER_OF)
    assert len(constants.NEUTRAL) == len(items.NUMBER_OF)


def test_every_struct_of_the_header_is_looked_at() -> None:
    text = re.sub(r"/\*.*?\*/", "", (INCLUDE / "kdbus-last.h").read_text(), flags=re.DOTALL)
    assert set(re.findall(r"^struct (\w+) \{", text, flags=re.MULTILINE)) == {*STRUCTS, "kdbus_item"}
    names = set(re.findall(r"\b_?KDBUS_[A-Z0-9_]+\b", text))
    known = {*numbers(), *(f"KDBUS_CMD_{name}" for name in REQUESTS), "_KDBUS_LAST_H_", "_KDBUS_UAPI_H_"}
    bounds = {name for name in names if name.endswith(("_NULL", "_BASE"))}
    assert names - bounds <= known
    assert known - names <= set()


def test_one_header_at_a_time(tmp_path: Path) -> None:
    source = tmp_path / "both.c"
    source.write_text('#include "kdbus.h"\n#include "kdbus-last.h"\n')
    built = subprocess.run(
        ["gcc", f"-I{INCLUDE}", "-c", str(source), "-o", str(tmp_path / "both.o")], capture_output=True, timeout=120
    )
    assert built.returncode != 0
    assert b"include one of them" in built.stderr
