"""kdbusctl completion: scripts for shells."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ..context import Context, pass_context
from ..options import Command


@click.command("completion", cls=Command, short_help="Print a script that makes a shell complete kdbusctl.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_context
def command(context: Context, shell: str) -> None:
    """Print a script that makes a shell complete commands, options, mounts, buses, names and ids.

    \b
    bash:  eval "$(kdbusctl completion bash)"      in ~/.bashrc, or write it to
           /usr/share/bash-completion/completions/kdbusctl
    zsh:   eval "$(kdbusctl completion zsh)"       in ~/.zshrc after compinit, or write it to
           a file _kdbusctl in a directory of $fpath
    fish:  kdbusctl completion fish | source       in ~/.config/fish/config.fish

    With --json an object: shell, script.
    """
    found = get_completion_class(shell)
    assert found is not None, shell
    root = click.get_current_context().find_root().command
    completion = found(root, {}, "kdbusctl", "_KDBUSCTL_COMPLETE")
    # Not `source()`: it asks the installed bash for its version first.
    script = completion.source_template % completion.source_vars()
    if context.output.json:
        context.output.document({"shell": shell, "script": script})
    else:
        click.echo(script.rstrip("\n"))
