"""Walk through folders, by one rule for data sets, pictures to predict, and runs.

Hidden names (which begin with a dot) and names of operating systems are ignored. Symbolic links are followed, after the
folders that are not links; a folder is never entered twice, nor is one that contains the first, so that loops end. A
broken link counts as a file, so that opening it raises an error.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hsakd_pl.errors import UsageError

SYSTEM_NAMES = {  # what operating systems and network storage put into folders, in lower case
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "@eadir",
    "@recycle",
    "@tmp",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "lost+found",
    "system volume information",
    "thumbs.db",
}


def visible(name: str) -> bool:
    """Return True if a name is neither hidden nor one of an operating system's."""
    return bool(visible_names([name]))


def visible_names(names: Sequence[str]) -> list[str]:
    """Return those names that are neither hidden nor one of an operating system's, sorted."""
    return sorted([name for name in names if not name.startswith(".") and name.lower() not in SYSTEM_NAMES])


def with_parents(folder: str | Path) -> set[str]:
    """Return a folder and all that contain it, with links resolved."""
    resolved = Path(os.path.realpath(folder))
    return {str(resolved), *map(str, resolved.parents)}


def walk(
    folder: str | Path, choose: Callable[[list[str]], list[str]] = visible_names
) -> Iterator[tuple[str, list[str]]]:
    """Yield ``folder`` and every folder below it, each with the names of its files.

    Args:
        folder: folder to begin with.
        choose: chooses and sorts the names of a folder's files; by default those that are visible.

    Nothing is yielded for a folder that does not exist. Raises UsageError naming a folder that cannot be read.
    """
    resolved_folder = os.path.realpath(folder)
    entered = with_parents(folder) - {resolved_folder}
    waiting = deque([str(folder)])
    while waiting:
        for place, subfolders, names in os.walk(waiting.popleft(), onerror=_raise_unreadable):
            resolved = os.path.realpath(place)
            if resolved in entered:
                subfolders.clear()  # os.walk enters what is left in this list, except links
                continue
            entered.add(resolved)
            subfolders[:] = visible_names(subfolders)
            paths = [os.path.join(place, name) for name in subfolders]
            waiting.extend(path for path in paths if os.path.islink(path))
            yield place, choose(names)


def _raise_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise UsageError(f"{error.filename} cannot be read ({error.strerror})") from error
