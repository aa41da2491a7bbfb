"""The clients of object stores: how they are opened, asked, and what their errors mean.

All of them are fsspec's, and each raises errors of its own; here they become an `OSError` with a
number and the address. What a store refuses (credentials, rights, a clock that is wrong) ends at
once and says so; what passes is waited for. A store that is busy is asked again for two minutes, or
for as long as the variable `PERTURB_STORE_SECONDS` says, and then named in an error of its own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from launch.job import faults

__all__ = ["PATIENCE", "Busy", "asked", "patience", "system"]

SILENT = 60  # seconds after which a connection that says nothing is given up
TRIES = 3
PATIENCE = "PERTURB_STORE_SECONDS"  # the variable
SECONDS = 120.0  # without it
LONGEST = 15.0  # seconds between two calls to a store that is busy
# "Ask again later", in the numbers that the three services have for it.
_LATER = frozenset([429, 500, 502, 503, 504])

T = TypeVar("T")


class Busy(OSError):
    """A store that did not take a call for as long as it is asked: what waits behind it need not
    try, for it would wait as long.
    """


def patience() -> float:
    """Returns for how many seconds a call to a busy store is repeated.

    Raises:
      ValueError: if the variable holds no such number.

    >>> patience()
    120.0
    """
    text = os.environ.get(PATIENCE, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{PATIENCE}={text[:40]!r}: expected seconds, 0 or more, e.g. 120")
    return seconds


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
    if scheme in ("s3", "s3a"):
        # s3fs repeats five times, and reading five times five, what botocore has repeated already:
        # one call would be asked for longer than the whole is to take. It gives up a connection
        # that says nothing after 15 seconds by itself.
        return {"config_kwargs": {"retries": {"max_attempts": 1, "mode": "legacy"}}}
    return {}


def asked(text: str, call: Callable[[Any], T], *, sleep: Callable[[float], None] = time.sleep) -> T:
    """Returns what a call to the file system of an address gives; errors that pass are waited
    for.

    Raises:
      Busy: if the store says for `patience()` seconds that it is busy.
    """
    limit, begin, wait = patience(), time.monotonic(), 0.5

    def once() -> T:
        with _named(text):
            return call(system(text))

    while True:
        tried = time.monotonic()
        try:
            # Few times: the clients repeat by themselves, five times and more.
            return faults.retried(once, tries=TRIES, passing=_PASSING)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            now = time.monotonic()
            # Clients take up to a minute to give up: the next call is to end within the time too.
            if now - begin + wait + (now - tried) > limit:
                said = f"busy for {now - begin:.0f} s ({(error.strerror or '')[:100]})"
                said += f"; {PATIENCE}={limit:g} limits how long it is asked"
                raise Busy(errno.EBUSY, said, text) from error
        sleep(wait)
        # Of a notice that came in a thread of its own.
        faults.heed()
        wait = min(2 * wait, LONGEST)


@contextlib.contextmanager
def _named(text: str) -> Iterator[None]:
    """Turns whatever a store's client raises into an `OSError` with a number and the address."""
    try:
        yield
    except OSError as error:
        if _refused(error):
            raise _denied(text, error) from error
        if _later(error):
            raise OSError(errno.EBUSY, error.strerror or _said(error), text) from error
        if error.errno is not None and error.filename is not None:
            raise
        code = error.errno or next((n for kind, n in _KINDS if isinstance(error, kind)), errno.EIO)
        said = _said(error) if code == errno.EIO and str(error) else os.strerror(code)
        raise OSError(code, said, text) from error
    except Exception as error:
        if _refused(error):
            raise _denied(text, error) from error
        if _later(error):
            raise OSError(errno.EBUSY, _said(error), text) from error
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


def _later(error: BaseException) -> bool:
    """Returns whether a store asks to be asked again later."""
    if isinstance(error, OSError) and error.errno == errno.EBUSY:
        return True
    # s3fs hands on what botocore said as the cause of an error of its own.
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        answer = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        status = getattr(one, "status_code", None) or getattr(one, "code", None)
        status = status or answer.get("HTTPStatusCode")
        if str(status).isdigit() and int(str(status)) in _LATER:
            return True
    return False


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
# A busy store is waited for by time, and not by the number of calls.
_PASSING = faults.TRANSIENT - {errno.EBUSY}
_KINDS = (
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (PermissionError, errno.EACCES),
    (IsADirectoryError, errno.EISDIR),
    (TimeoutError, errno.ETIMEDOUT),
)
