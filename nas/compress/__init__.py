"""A network of the user's own, made smaller: what in it may be searched, and how.

The package can be called: `nas.compress(model, data, ...)` is `nas.api.compress`, which says what
it takes.

Example:
    >>> import nas
    >>> run = nas.compress(network, (x, y), budget={"macs": "50%"})  # doctest: +SKIP
"""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package that is a function as well: a user's word to it is `nas.compress(...)`."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        from nas.api import compress

        return compress(*args, **keywords)


sys.modules[__name__].__class__ = _Package
