"""What the libraries underneath say to developers is kept from the users of this one."""

import logging
import threading
import warnings


def quiet() -> None:
    """Lightning's adverts and hints about workers are not for the user of a search."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|pytorch_lightning")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    threading.excepthook = _excepthook


def _excepthook(failed: threading.ExceptHookArgs) -> None:
    # TensorBoard writes in a thread, and raises in the main thread what that one could not write.
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)
