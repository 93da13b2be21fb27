"""bus1.h against kdbusfs.bus1.abi and the table of the specification: names, numbers, sizes and offsets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kdbusfs.bus1 import abi
from tests.unit.test_header import INCLUDE, STRICT, needs

COMPILERS = {
    "c11": ("gcc", "-std=c11"),
    "gnu17": ("gcc", "-std=gnu17"),
    "c++20": ("g++", "-std=c++20", "-Wno-invalid-offsetof"),
    "32 bit": ("gcc", "-std=c11", "-m32"),
}
STRUCTS = {
    "peer_reset": "flags peer_flags max_slices max_handles max_inflight_bytes max_inflight_fds",
    "handle_transfer": "flags src_handle dst_fd dst_handle",
    "nodes_destroy": "flags ptr_nodes n_nodes",
    "send": "flags ptr_destinations ptr_errors n_destinations ptr_vecs n_vecs ptr_handles n_handles ptr_fds n_fds",
    "recv": "flags max_offset",
}
MESSAGE = "type flags destination uid gid pid tid offset n_bytes n_handles n_fds n_secctx"
# Of abi alone: combinations, limits that the header does not tell, and what is not a number of the header.
OWN = re.compile(r"MAGIC|HANDLE_FLAGS|POOL_SIZE|UNCHANGED|(U64|SLICE|VEC|DESTINATIONS|BYTES|LIMIT)_MAX")


def constants() -> dict[str, int]:
    found = {name: value for name, value in vars(abi).items() if name.isupper() and isinstance(value, int)}
    members = {each.upper(): "|".join([*names.upper().split(), "SIZE", "MSG"]) for each, names in STRUCTS.items()}
    layout = re.compile("|".join(f"{each}_({names})" for each, names in members.items()))
    message = re.compile(f"MSG_({'|'.join(MESSAGE.upper().split())})")
    return {
        f"BUS1_{name}": value
        for name, value in found.items()
        if not OWN.fullmatch(name) and not layout.fullmatch(name) and not message.fullmatch(name)
    }


def expected() -> dict[str, int]:
    """Everything that the header says, by C expression."""
    values = constants()
    values["BUS1_IOCTL_MAGIC"] = abi.MAGIC
    for struct, members in STRUCTS.items():
        values[f"sizeof(struct bus1_cmd_{struct})"] = getattr(abi, f"{struct.upper()}_SIZE")
        for member in members.split():
            offset = getattr(abi, f"{struct.upper()}_{member.upper()}")
            values[f"offsetof(struct bus1_cmd_{struct}, {member})"] = offset
    for member in MESSAGE.split():
        values[f"offsetof(struct bus1_cmd_recv, msg.{member})"] = getattr(abi, f"MSG_{member.upper()}")
    values["offsetof(struct bus1_cmd_recv, msg)"] = abi.RECV_MSG
    return values


@pytest.fixture(scope="module", params=COMPILERS)
def values(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the header says as each compiler sees it; it compiles without a warning."""
    command = COMPILERS[request.param]
    directory = tmp_path_factory.mktemp("bus1-header")
    needs(command, directory)
    source = directory / ("values.cc" if command[0] == "g++" else "values.c")
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "bus1.h"', "int main(void) {"]
    lines += [f'printf("%llu\\n", (unsigned long long)({expression}));' for expression in expected()]
    source.write_text("\n".join([*lines, "return 0; }", ""]))
    binary = directory / "values"
    built = subprocess.run(
        [*command, *STRICT, str(source), "-o", str(binary)], capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 0, built.stderr
    output = subprocess.run([str(binary)], capture_output=True, text=True, timeout=120, check=True).stdout
    return dict(zip(expected(), map(int, output.split()), strict=True))


def test_the_header_and_the_core_agree(values: dict[str, int]) -> None:
    assert values == expected()


def test_the_header_has_the_numbers_of_the_specification(values: dict[str, int]) -> None:
    numbers = {
        "PEER_DISCONNECT": 0xC0089600,
        "PEER_QUERY": 0xC0209601,
        "PEER_RESET": 0xC0209602,
        "HANDLE_RELEASE": 0xC0089610,
        "HANDLE_TRANSFER": 0xC0209611,
        "NODES_DESTROY": 0xC0189620,
        "SLICE_RELEASE": 0xC0089630,
        "SEND": 0xC0509640,
        "RECV": 0xC0609650,
    }
    assert {name: values[f"BUS1_CMD_{name}"] for name in numbers} == numbers
    assert set(numbers.values()) == set(abi.COMMANDS)
    sizes = {name: values[f"sizeof(struct bus1_cmd_{name})"] for name in STRUCTS}
    assert sizes == {"peer_reset": 32, "handle_transfer": 32, "nodes_destroy": 24, "send": 80, "recv": 96}
    assert values["offsetof(struct bus1_cmd_recv, msg.uid)"] == 40
    assert values["offsetof(struct bus1_cmd_recv, msg.n_secctx)"] == 88


def test_the_header_names_what_the_core_does_and_nothing_else() -> None:
    text = re.sub(r"/\*.*?\*/", "", (Path(INCLUDE) / "bus1.h").read_text(), flags=re.DOTALL)
    names = set(re.findall(r"\bBUS1_[A-Z0-9_]+\b", text))
    assert names == set(constants()) | {"BUS1_IOCTL_MAGIC"}
    assert set(re.findall(r"struct bus1_cmd_(\w+) \{", text)) == set(STRUCTS)
