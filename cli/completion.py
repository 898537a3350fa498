"""`raykeeper completion`: what a shell needs to complete commands and options. Click writes it, and answers it."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print the completion of commands and options for a shell.

    \b
    bash   eval "$(raykeeper completion bash)"                                    in ~/.bashrc
    zsh    eval "$(raykeeper completion zsh)"                                     in ~/.zshrc
    fish   raykeeper completion fish > ~/.config/fish/completions/raykeeper.fish  once
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(_source(kind, ctx.find_root().command))


def _source(kind: type[click.shell_completion.ShellComplete], command: click.Command) -> str:
    """The script. Click's own for bash starts a bash to learn its version; one that is too old does not complete."""
    made = kind(command, {}, "raykeeper", "_RAYKEEPER_COMPLETE")
    return made.source_template % made.source_vars()
