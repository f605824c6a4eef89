"""Packages of the `report` extra, loaded where they are used."""

from importlib import import_module
from typing import Any

from nas.errors import UserError


def load_optional(module: str) -> Any:
    """Import `module`, or say which extra brings it.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"the pictures and the page of a report need {package}, which cannot be imported "
            f"({error}); install it with: pip install 'dnas[report]'. "
            "The table and report.csv were made without it"
        ) from None
