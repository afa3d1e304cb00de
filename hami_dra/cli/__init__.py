"""The one command ``hami-dra``; each process's room is imported only when it is asked for."""

from importlib import import_module
from typing import Final

import click

from hami_dra import __version__
from hami_dra.contract.errors import HamiDraError

_COMMANDS: Final = {
    "node": ("hami_dra.cli.node", "node"),
    "webhook": ("hami_dra.cli.webhook", "webhook"),
    "controller": ("hami_dra.cli.controller", "controller"),
    "convert": ("hami_dra.cli.convert", "convert"),
    "explain": ("hami_dra.cli.explain", "explain"),
    "claims": ("hami_dra.cli.claims", "claims"),
}


class _LazyGroup(click.Group):
    """A group that pays for a subcommand's imports when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names without importing anything."""
        del ctx
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is not a command")
        return command


@click.group(cls=_LazyGroup)
@click.version_option(__version__, prog_name="hami-dra")
def cli() -> None:
    """Share NVIDIA GPUs on stock Kubernetes."""


def main() -> None:
    """Run the command line; an error raised on purpose is one line, not a traceback."""
    try:
        cli(auto_envvar_prefix="HAMI_DRA")
    except HamiDraError as error:
        raise SystemExit(f"hami-dra: {error}") from error
    except BaseExceptionGroup as group:
        expected, rest = group.split(HamiDraError)
        if expected is None or rest is not None:
            raise
        raise SystemExit(f"hami-dra: {'; '.join(_messages(expected))}") from group


def _messages(group: BaseExceptionGroup[HamiDraError]) -> list[str]:
    return [
        text
        for error in group.exceptions
        for text in (_messages(error) if isinstance(error, BaseExceptionGroup) else [str(error)])
    ]
