"""``--config FILE`` of the commands that take part in admission."""

from pathlib import Path
from typing import Final

import click

from hami_dra.contract.errors import FatalError, UserError
from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings, decode_settings

_MOST_BYTES: Final = 1 << 20

config_option = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What GPU keys mean, as YAML or JSON with the names of HAMi's device configuration.",
)


def read_settings(path: Path | None) -> AdmissionSettings:
    """Return the settings in a file, the defaults without one.

    Raises:
        FatalError: It cannot be read, or says something that it cannot say.
    """
    if path is None:
        return DEFAULT_SETTINGS
    # Imported here, so that --help stays fast.
    import yaml  # noqa: PLC0415

    try:
        text = path.read_bytes()
        if len(text) > _MOST_BYTES:
            raise FatalError(f"{path} is larger than {_MOST_BYTES} bytes")
        return decode_settings(yaml.safe_load(text))
    except (OSError, yaml.YAMLError, UserError) as error:
        raise FatalError(f"configuration {path}: {error}") from error
