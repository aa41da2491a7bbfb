"""The clients of object stores: how they are opened, asked, and what their errors mean.

All of them are fsspec's, and each raises errors of its own; here they become an `OSError` with a
number and the address. What a store refuses (credentials, rights, a clock that is wrong) ends at
once and says so; what passes is waited for.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from launch.job import faults

__all__ = ["asked", "system"]

SILENT = 60  # seconds after which a connection that says nothing is given up
TRIES = 3

T = TypeVar("T")


def system(text: str) -> Any:
    """Returns the file system of an address."""
    return _opened(text.partition("://")[0])


@functools.cache
def _opened(scheme: str) -> Any:
    try:
        import fsspec

        # Others write there too: what was listed before says nothing.
        return fsspec.filesystem(scheme, use_listings_cache=False, **_settings(scheme))
    except ImportError as error:
        raise ValueError(
            f"{scheme}:// needs more than is installed ({error}): pip install gcsfs for gs://, "
            "s3fs for s3://, adlfs for az://"
        ) from error
    except ValueError as error:
        raise ValueError(f"{scheme}:// is no kind of store that is known ({error})") from error
    except Exception as error:  # as clients do whose credentials cannot be read
        raise ValueError(f"{scheme}:// cannot be opened: {_said(error)[:200]}") from error


def _settings(scheme: str) -> dict[str, Any]:
    """What a client is told: to give up a connection that says nothing."""
    if scheme in ("gs", "gcs"):
        # A bucket of a zone shows objects before they are whole, and the question what kind a
        # bucket is asks for rights that a job does not need otherwise.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each error as a traceback
        import aiohttp

        # Without, gcsfs waits for ever.
        return {"requests_timeout": aiohttp.ClientTimeout(sock_connect=SILENT, sock_read=SILENT)}
    if scheme in ("az", "abfs", "abfss"):
        return {"connection_timeout": SILENT, "read_timeout": SILENT}
    return {}  # s3fs has 15 seconds by itself


def asked(text: str, call: Callable[[Any], T]) -> T:
    """Returns what a call to the file system of an address gives; errors that pass are waited
    for.
    """

    def once() -> T:
        with _named(text):
            return call(system(text))

    # Few times: the clients repeat by themselves what a busy store refuses, five times and more.
    return faults.retried(once, tries=TRIES)


@contextlib.contextmanager
def _named(text: str) -> Iterator[None]:
    """Turns whatever a store's client raises into an `OSError` with a number and the address."""
    try:
        yield
    except OSError as error:
        if _refused(error):
            raise _denied(text, error) from error
        if error.errno is not None and error.filename is not None:
            raise
        code = error.errno or next((n for kind, n in _KINDS if isinstance(error, kind)), errno.EIO)
        said = _said(error) if code == errno.EIO and str(error) else os.strerror(code)
        raise OSError(code, said, text) from error
    except Exception as error:
        if _refused(error):
            raise _denied(text, error) from error
        raise OSError(errno.EIO, f"{type(error).__name__}: {_said(error)}"[:300], text) from error


def _refused(error: BaseException) -> bool:
    """Returns whether a store does not know who asks, or does not let them: no use to ask again."""
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    return (
        isinstance(error, PermissionError)
        or str(status) in ("401", "403")
        or type(error).__name__ in _STRANGERS
        or str(error).startswith("Forbidden")  # gcsfs
    )


def _denied(text: str, error: BaseException) -> OSError:
    said = f"refused ({_said(error)[:140]}): check credentials, rights on the bucket and the clock"
    return OSError(errno.EACCES, said, text)


def _said(error: BaseException) -> str:
    """The store's own words, in one line and without the document that Azure adds."""
    inner = error.__cause__ if isinstance(error, PermissionError) and error.__cause__ else error
    return " ".join(str(inner).partition("Content:")[0].split())


# Errors of clients that have no credentials, or bad ones.
_STRANGERS = (
    "ClientAuthenticationError",
    "CredentialUnavailableError",
    "DefaultCredentialsError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "RefreshError",
)
_KINDS = (
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (PermissionError, errno.EACCES),
    (IsADirectoryError, errno.EISDIR),
    (TimeoutError, errno.ETIMEDOUT),
)
