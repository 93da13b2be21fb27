"""The frame of kdbusctl: commands, options, help, failures and completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import kdbusfs.ctl.commands
from kdbusfs.ctl import locations, main
from kdbusfs.ctl.arguments import ATTACH, END, NAME, Seconds
from kdbusfs.ctl.context import Context
from kdbusfs.ctl.failure import EXIT_CODES, EXIT_USAGE, Failure, exit_code_of, failing
from kdbusfs.ctl.main import cli, run
from kdbusfs.ctl.options import Command

COMMANDS = [name for _, commands in main.SECTIONS for name in commands]


@pytest.fixture(autouse=True)
def no_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDBUS_BUS", raising=False)
    monkeypatch.delenv("KDBUSFS_MOUNT", raising=False)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> list[Context]:
    """A command `probe` that only notes the Context."""
    seen: list[Context] = []

    @click.command("probe", cls=Command)
    @click.pass_obj
    def command(context: Context) -> None:
        seen.append(context)

    monkeypatch.setattr(cli, "get_command", lambda ctx, name: command)
    return seen


def test_every_module_is_a_command_and_the_other_way_round() -> None:
    folder = Path(kdbusfs.ctl.commands.__path__[0])
    modules = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--"}
    assert modules == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_have_help_and_take_the_common_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command: click.Command = import_module(f"kdbusfs.ctl.commands.{name.replace('-', '_')}").command
    assert isinstance(command, Command)
    assert command.name == name
    assert command.short_help == main._TABLE[name]
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "With --json" in " ".join(text.split())
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


def test_help_lists_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in text
    for code, meaning in EXIT_CODES:
        assert f"{code} " in text
        assert meaning in text
    assert "KDBUS_BUS" in text and "KDBUSFS_MOUNT" in text


def test_help_through_click_is_the_same() -> None:
    """click's own runner, as the tools that make man pages use it."""
    result = CliRunner().invoke(cli, ["list", "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"kdbusctl {kdbusfs.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense", "list"],
        ["list", "--nonsense"],
        ["list", "too", "much"],
        ["call"],
        ["call", "nodots"],
        ["call", "0"],
        ["call", "18446744073709551615"],
        ["call", "-1"],
        ["wait", "7"],
        ["wait", "org.example.*"],
        ["call", "org.example.A", "--timeout", "0"],
        ["call", "org.example.A", "--timeout", "nan?"],
        ["call", "1" * 5000],
        ["make-bus", "x", "--bloom-size", "4"],
        ["make-bus", "x", "--bloom-size", "12"],
        ["make-bus", "x", "--require", "everything"],
        ["own", "org.example.A", "--activator", "--queue"],
        ["status", "1", "--creator"],
        ["policy"],
        ["policy", "/nonexistent/\x1b[31m"],
        ["completion", "tcsh"],
        ["--color", "sometimes", "list"],
        [],
    ],
)
def test_wrong_usage_is_one_line_and_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if arguments[:1] == ["status"]:
        arguments = ["--mount", str(tmp_path), *arguments]
    assert run(arguments) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kdbusctl: ")
    assert captured.err.count("\n") == 1
    assert captured.err.rstrip("\n").isprintable()


def test_options_count_before_and_after_the_command(probe: list[Context]) -> None:
    assert run(["--mount", "/a", "--json", "probe"]) == 0
    assert run(["probe", "--mount", "/a", "--json"]) == 0
    assert run(["--mount", "/b", "probe", "--mount", "/a", "--json"]) == 0
    for context in probe:
        assert (context.mount, context.json, context.bus) == ("/a", True, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["call", "org.example.A", "--timeout"],
        ["wait", "org.example.A", "--timeout"],
        ["monitor", "--duration"],
        ["capture", "-", "--duration"],
        ["top", "--interval"],
    ],
)
def test_a_time_that_is_no_number_is_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, "nan"]) == EXIT_USAGE
    assert "'nan' is not a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("2", 2.0), (".5", 0.5), ("1.5", 1.5), ("500ms", 0.5), ("90s", 90.0), ("2min", 120.0),
                          ("1m", 60.0), ("1h", 3600.0)]
)  # fmt: skip
def test_a_time_may_have_a_unit(text: str, seconds: float) -> None:
    assert Seconds(0, 1e6).convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "1 m 2", "1d", "-1", "0x10", "1e3", "inf"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a number of seconds"):
        Seconds(0, 1e6).convert(text, None, None)


def test_the_mount_may_be_given_by_the_environment(probe: list[Context], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBUSFS_MOUNT", "/environment")
    for arguments in (["probe"], ["--mount", "/given", "probe"], ["probe", "--mount", "/given"]):
        assert run(arguments) == 0
    assert [context.mount for context in probe] == ["/environment", "/given", "/given"]


def test_the_environment_counts_least(probe: list[Context], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBUS_BUS", "environment")
    for arguments in (["probe"], ["--bus", "given", "probe"], ["probe", "--bus", "given"]):
        assert run(arguments) == 0
    assert [context.bus for context in probe] == ["environment", "given", "given"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Failure("failed \x1b[31m\nline", 5), 5),
        (PermissionError(13, "Permission denied", "SEND"), 4),
        (TimeoutError(110, "Connection timed out"), 5),
        (OSError(25, "Inappropriate ioctl for device", "HELLO"), 32),
        (OSError(107, "Transport endpoint is not connected"), 32),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
)
def test_whatever_happens_is_one_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command("probe", cls=Command)
    def command() -> None:
        raise error

    monkeypatch.setattr(cli, "get_command", lambda ctx, name: command)
    assert run(["probe"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == (0 if code == 130 else 1)
    assert "\x1b" not in captured.err


def test_hints_stand_for_an_errno() -> None:
    with pytest.raises(Failure) as caught, failing("do it", {3: "nobody is there"}):
        raise ProcessLookupError(3, "No such process", "SEND")
    assert caught.value.message == "cannot do it: nobody is there"
    assert caught.value.exit_code == exit_code_of(ProcessLookupError(3, "")) == 3
    with pytest.raises(Failure) as caught, failing("do it"):
        raise OSError(28, "No space left on device")
    assert caught.value.message == "cannot do it: no space left on device"


def test_help_and_version_need_neither_rich_nor_a_connection() -> None:
    """Starting is quick: what takes long to import is imported by who needs it."""
    script = """
import sys
from kdbusfs.ctl.main import run
code = run(sys.argv[1:])
heavy = {"rich", "cffi", "tomllib", "subprocess", "trio"} & sys.modules.keys()
sys.exit(f"imported: {heavy}" if heavy else code)
"""
    for arguments in (["--version"], ["--help"]):
        result = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")


# Arguments.


def convert(kind: Any, text: str) -> Any:
    return kind.convert(text, None, None)


def test_connections_are_ids_or_names() -> None:
    assert [convert(END, text) for text in ("7", "#7", ":1.7", "org.example.A")] == [7, 7, 7, "org.example.A"]
    assert convert(NAME, "org.example.A") == "org.example.A"
    for text in ("\u0667", "7 ", "1.7", "0x7", ""):
        with pytest.raises(click.UsageError):
            convert(END, text)


def test_kinds_of_metadata() -> None:
    assert convert(ATTACH, "creds,pids") == 0b110
    assert convert(ATTACH, "all") == (1 << 14) - 1
    assert convert(ATTACH, "none") == 0
    with pytest.raises(click.UsageError):
        convert(ATTACH, "creds,,")


# Completion.


def completed(*words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash would offer for the last of `words`."""
    monkeypatch.setenv("COMP_WORDS", " ".join(["kdbusctl", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setenv("_KDBUSCTL_COMPLETE", "bash_complete")
    with pytest.raises(SystemExit):
        cli.main([], prog_name="kdbusctl")
    return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines() if line]


def test_commands_and_options_are_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(completed("", monkeypatch=monkeypatch, capsys=capsys)) == set(COMMANDS)
    assert completed("make-", monkeypatch=monkeypatch, capsys=capsys) == ["make-bus", "make-endpoint"]
    assert completed("list", "--uni", monkeypatch=monkeypatch, capsys=capsys) == ["--unique"]
    assert completed("tree", "--depth", "b", monkeypatch=monkeypatch, capsys=capsys) == ["buses"]


def test_completion_says_nothing_where_there_is_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locations, "mounts", list)
    for words in (("status", ""), ("--bus", ""), ("--mount", ""), ("list", "--endpoint", ""), ("wait", "org.")):
        assert completed(*words, monkeypatch=monkeypatch, capsys=capsys) == []


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_takes_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef kdbusctl\n")
    result = subprocess.run(
        ["zsh", "-f", "-c", "autoload -U compinit; compinit -D\n" + script + "\nprint $_comps[kdbusctl]"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "_kdbusctl_completion\n"), result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_KDBUSCTL_COMPLETE={shell}_complete" in script
    assert run(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"].rstrip("\n") == script.rstrip("\n")


def test_bash_takes_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "bash"]) == 0
    result = subprocess.run(
        ["bash", "--norc", "-c", capsys.readouterr().out + "\ncomplete -p kdbusctl"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "kdbusctl" in result.stdout
