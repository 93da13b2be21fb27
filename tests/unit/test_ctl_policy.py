"""Policy files: what they say, and which mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import group, user, world
from kdbusfs.ctl import policy_file
from kdbusfs.ctl.arguments import is_name
from kdbusfs.ctl.failure import EXIT_USAGE, Failure
from kdbusfs.ctl.policy_file import load, right_json, right_text, user_id, what_may

GOOD = """
[[name]]
name = "org.example.Echo"
see = ["world"]
own = ["user:root", "group:7"]
talk = ["user:1234"]

[[name]]
name = "org.example.*"
talk = ["group:root"]

[[name]]
name = "org.example.Nobody"
"""


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def test_a_policy_file(write: Path) -> None:
    write.write_text(GOOD)
    first, second, third = load(str(write))
    assert first.name == "org.example.Echo"
    assert first.rights == (
        user(0, c.POLICY_OWN),
        group(7, c.POLICY_OWN),
        user(1234, c.POLICY_TALK),
        world(c.POLICY_SEE),
    )
    assert (second.name, second.rights) == ("org.example.*", (group(0, c.POLICY_TALK),))
    assert (third.name, third.rights) == ("org.example.Nobody", ())


def test_an_empty_file_is_an_empty_policy(write: Path) -> None:
    write.write_text("")
    assert load(str(write)) == []


def name(text: str) -> str:
    return f'[[name]]\nname = "org.example.A"\n{text}'


MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "no TOML": ("[[name]", "not valid TOML"),
    "no UTF-8": (b"\xff", "not valid TOML"),
    "nested": ("x=" + "[" * 100_000, "not valid TOML"),
    "unknown table": ("[names]", "unknown key 'names'"),
    "one table": ('[name]\nname="a.b"', "[[name]]"),
    "no name": ("[[name]]\nown = []", "table 1 has no name"),
    "number as name": ("[[name]]\nname = 1", "table 1 has no name"),
    "invalid name": ('[[name]]\nname = "org"', "'org' is neither"),
    "star inside": ('[[name]]\nname = "org.*.a"', "'org.*.a' is neither"),
    "unknown key": (name('on = ["world"]'), "unknown key 'on'"),
    "no list": (name('own = "world"'), "own must be a list"),
    "no strings": (name("own = [0]"), "own must be a list"),
    "no kind": (name('talk = ["root"]'), "'root' is none of"),
    "unknown kind": (name('talk = ["uid:0"]'), "'uid:0' is none of"),
    "empty": (name('talk = ["user:"]'), "'user:' is none of"),
    "unknown user": (name('talk = ["user:no such user"]'), "no user 'no such user'"),
    "unknown group": (name('see = ["group:no such group"]'), "no group 'no such group'"),
    "NUL": (name('see = ["group:a\\u0000"]'), "no group"),
    "large id": (name('see = ["user:4294967295"]'), "no user 4294967295"),
    "huge id": (name(f'see = ["user:{"9" * 5000}"]'), "no user 999"),
    "twice": (name("") + name(""), "two tables"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(write: Path, mistake: str) -> None:
    text, said = MISTAKES[mistake]
    write.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Failure) as caught:
        load(str(write))
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.message.startswith(f"'{write}'")
    assert said in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(Failure, match="cannot read"):
            load(str(path))


def test_what_a_user_may(write: Path) -> None:
    """POL-3, POL-7, POL-23: the highest right counts, and an exact name hides the wildcard."""
    write.write_text(GOOD)
    entries = load(str(write))
    assert what_may(entries, "org.example.Echo", 0) == "own"
    assert what_may(entries, "org.example.Echo", 1234) == "talk"
    assert what_may(entries, "org.example.Echo", 4321) == "see"
    assert what_may(entries, "org.example.Other", 0) == "talk"
    assert what_may(entries, "org.example.Other", 4321) is None
    assert what_may(entries, "org.example.Other.Deep", 0) is None
    assert what_may(entries, "org.example.Nobody", 0) is None


def test_rights_in_words() -> None:
    assert right_text(user(0, c.POLICY_OWN)) == "user:root"
    assert right_text(group(4_000_000_000, c.POLICY_SEE)) == "group:4000000000"
    assert right_json(world(c.POLICY_SEE)) == {"access": "see", "kind": "world", "id": None, "who": "world"}
    assert right_json(user(0, c.POLICY_TALK))["access"] == "talk"


def test_users_by_name_and_number() -> None:
    assert user_id("root") == 0
    assert user_id("77") == 77
    with pytest.raises(Failure):
        user_id("no such user")


@pytest.mark.parametrize("wildcard", [False, True])
def test_names_are_judged_as_the_bus_does(wildcard: bool) -> None:
    """NAME-1, NAME-2"""
    from kdbusfs.abi.names import is_valid_name

    texts = [
        *(
            "a.b",
            "a",
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a.1b",
            "a.b1",
            "-a._b",
            "a.b\n",
            "a.b ",
            "a.é",
            "a.*",
            "*",
            "a.*.b",
        ),
        *("*.a", "a.b*", "a." + "b" * 253, "a." + "b" * 254),
    ]
    for text in texts:
        assert is_name(text, wildcard=wildcard) == is_valid_name(text.encode(), wildcard=wildcard), text


def test_the_example_in_help_is_a_policy_file(write: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line[2:] for line in policy_file.HELP.splitlines() if line.startswith("  ")]
    write.write_text("\n".join(lines).replace("user:alice", "user:root").replace("group:staff", "group:root"))
    assert [entry.name for entry in load(str(write))] == ["org.example.Echo"]
