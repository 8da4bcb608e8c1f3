"""Files behind URLs, through fsspec: https://, s3://, gs://, hf:// and whatever else has a package for it.

Filesystems raise whatever their libraries raise; here it becomes a DataError that names the URL.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, cast

from luthier.core.data.sources.files import has_wildcard, shown_path
from luthier.core.errors import DataError, LuthierError, MissingEnvironmentError

PACKAGES: Final = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "adl": "adlfs",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
# What servers call the digest of a file, which is the same as long as its content is.
DIGESTS: Final = ("sha256", "blob_id", "checksum", "md5Hash", "md5", "content_md5", "Content-MD5", "Digest")
# The same as long as the content of this URL is; two files may share one: web servers make it of date and size.
TAGS: Final = ("ETag", "etag")


def paths_of(url: str) -> tuple[list[str], bool]:
    """The URLs that a URL means, and whether it is a folder or a glob; raises DataError when it matches nothing."""
    with _errors(url):
        system, path = filesystem(url)
        web = url.startswith(("http://", "https://"))
        if "::" not in url and has_wildcard(url):
            folder = path.partition("*")[0].rpartition("/")[0]
            matches = [match for match in sorted(system.glob(path)) if not _hidden(match, folder)]
            if not matches:
                raise DataError("matches no file", where=shown_path(url), fix="check the pattern")
            return [system.unstrip_protocol(match) for match in matches], True
        # A web server says of any page that it might be a folder.
        if "::" not in url and not web and system.isdir(path):
            inside = (name for name in sorted(system.find(path)) if not _hidden(name, path))
            return [system.unstrip_protocol(name) for name in inside], True
    return [url], False


def filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL and the path in it. Raises MissingEnvironmentError naming the package that is missing."""
    protocol = url.split("://", 1)[0].rsplit("::", 1)[-1].lower()
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        raise MissingEnvironmentError(
            f"{protocol}:// cannot be read: {error}",
            where=shown_path(url),
            fix=f"pip install {package}" if package else "install the package that the message names",
        ) from error
    except ValueError as error:
        fix = "check the part before ://, such as https, s3, gs, az or hf"
        raise DataError(f"cannot be opened: {error}", where=shown_path(url), fix=fix) from error
    return system, str(path)


@contextmanager
def open_url(url: str) -> Iterator[BinaryIO]:
    """The file behind a URL; its errors are DataErrors."""
    with _errors(url):
        system, path = filesystem(url)
        opened = system.open(path, "rb")
    with opened:
        yield cast(BinaryIO, io.BufferedReader(_Guarded(opened, url), buffer_size=1 << 16))


def digest_of(url: str) -> str:
    """What the server says that changes with the content of the file, or "" where it says nothing of the kind."""
    with _errors(url):
        system, path = filesystem(url)
        info = system.info(path)
    large = info.get("lfs")
    known = {**info, **large} if isinstance(large, dict) else info
    found = next((f"{name.lower()}:{known[name]}" for name in (*DIGESTS, *TAGS) if known.get(name)), "")
    return f"{found} of {shown_path(url)}" if found.startswith("etag:") else found


def _hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(folder).split("/"))


@contextmanager
def _errors(url: str) -> Iterator[None]:
    try:
        yield
    except LuthierError:
        raise
    except FileNotFoundError as error:
        # fsspec says this of a web server that did not answer as well; the cause tells the two apart.
        cause = error.__cause__
        why = f" ({type(cause).__name__}: {cause})".replace(url, shown_path(url)) if cause else ""
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            fix = "check the address and the network, or download the file and give its path"
            raise DataError(f"the server cannot be reached{why}", where=shown_path(url), fix=fix) from error
        fix = "check the address, and that you may read it"
        raise DataError(f"there is no such file{why}", where=shown_path(url), fix=fix) from error
    except Exception as error:
        raise DataError(
            f"cannot be read: {type(error).__name__}: {error}".replace(url, shown_path(url)),
            where=shown_path(url),
            fix="check the address, the network and your credentials, or download the file and give its path",
        ) from error


class _Guarded(io.RawIOBase):
    """A remote file whose errors name it, wherever in the reading they happen."""

    def __init__(self, inner: Any, url: str) -> None:
        self._inner, self._url = inner, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._inner.seekable())

    def readinto(self, buffer: Any) -> int:
        with _errors(self._url):
            data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self._inner.tell())
