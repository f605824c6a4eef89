"""TensorBoard on the runs of a report, until it is interrupted."""

import time
from collections.abc import Sequence
from pathlib import Path

from nas.errors import UserError


def serve(folders: Sequence[Path], page: Path, wait: bool = True) -> str:
    """Start TensorBoard on `folders`, print its address, and stay until Ctrl-C.

    Args:
        page: the HTML report, named beside the address.
        wait: False returns at once; the server ends with the process.

    Raises:
        UserError: TensorBoard cannot start, e.g. for want of a free port.
    """
    from tensorboard import program

    board = program.TensorBoard()
    shown = _outer(folders)
    for folder in shown:
        if "," in str(folder) or ":" in folder.name:  # they divide the folders, and their names
            raise UserError(f"TensorBoard takes no folder with a comma or a colon: rename {folder}")
    named = ",".join(f"{folder.name}:{folder}" for folder in shown)
    board.configure(argv=["tensorboard", "--logdir_spec", named, "--reload_interval", "5"])
    try:
        address = board.launch()
    except Exception as error:
        raise UserError(f"TensorBoard does not start: {error}") from None
    print(f"TensorBoard: {address} (Ctrl-C ends it)\nreport:      {page.resolve().as_uri()}")
    while wait:
        time.sleep(1)
    return str(address)


def _outer(folders: Sequence[Path]) -> list[Path]:
    """Without folders that lie in others, which would be shown twice."""
    resolved = dict.fromkeys(folder.resolve() for folder in folders)
    return [f for f in resolved if not any(f != o and f.is_relative_to(o) for o in resolved)]
