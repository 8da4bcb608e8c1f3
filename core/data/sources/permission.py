"""Which files may be read: an operator who runs other people's configurations can name the folders.

`LUTHIER_DATA_FOLDERS=/srv/data:/mnt/shared` (on Windows with `;`) allows local files inside these folders alone. Symbolic
links and `..` are followed first, and URLs and hub data sets are refused, since what they give is not in any folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from luthier.core.errors import DataError

VARIABLE: Final = "LUTHIER_DATA_FOLDERS"


def allowed_folders() -> tuple[Path, ...] | None:
    """The folders of the variable with their links resolved; None where it is not set."""
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return None
    return tuple(Path(folder).expanduser().resolve() for folder in value.split(os.pathsep) if folder.strip())


def is_allowed(path: str | Path) -> bool:
    """Whether a path, which need not exist, lies in the allowed folders."""
    folders = allowed_folders()
    return folders is None or any(Path(path).resolve().is_relative_to(folder) for folder in folders)


def check_local(path: str | Path) -> None:
    """Raises DataError for a path that leads out of the allowed folders."""
    folders = allowed_folders()
    if folders is not None and not is_allowed(path):
        real = Path(path).resolve()
        leads = "" if str(real) == str(path) else f" (it leads to {real})"
        raise DataError(
            f"is outside the folders that {VARIABLE} allows{leads}",
            where=str(path),
            fix=f"move it into one of them, or ask the operator to add its folder: {os.pathsep.join(map(str, folders))}",
        )


def check_elsewhere(name: str, what: str) -> None:
    """Raises DataError for a URL or a hub data set where only folders are allowed."""
    if allowed_folders() is not None:
        raise DataError(
            f"is {what}, and {VARIABLE} allows only local files",
            where=name,
            fix="download it into an allowed folder and give its path",
        )
