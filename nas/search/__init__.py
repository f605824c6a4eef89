"""The searches. The package can be called: `nas.search(space, data, ...)` is `nas.api.search`."""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package that is a function as well: a user's first word to it is `nas.search(...)`."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        from nas.api import search

        return search(*args, **keywords)


sys.modules[__name__].__class__ = _Package
