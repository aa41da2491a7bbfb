"""One page after another of what lies in an object store.

fsspec's own `find` and `ls` hold every object as a record of a kilobyte before they give the
first one: a million pictures take gigabytes. Here a page of the store is asked for, read and
forgotten, through the clients of fsspec, which know the credentials and repeat what failed. Other
kinds of stores (`memory://`) give everything as one page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Found", "page"]

SIZE = 1000  # objects that S3 and GCS give at most in one answer
# What is read of GCS's kilobyte an object.
_FIELDS = "items(name,size,md5Hash,etag,generation),prefixes,nextPageToken"


class Found(NamedTuple):
    """An object, or with an end of "/" a folder, in a page.

    Attributes:
      key: its name in the bucket.      info: what the store says of it, by fsspec's names.
    """

    key: str
    info: Mapping[str, Any]


def page(
    system: Any, bucket: str, prefix: str, *, flat: bool, mark: Any = None
) -> tuple[list[Found], Any]:
    """Returns one page of the objects whose names begin with `prefix`, and the mark of the next.

    Args:
      system: fsspec's client of the store.
      bucket: the bucket or container.
      prefix: how the names begin.
      flat: all that lies below; else names up to the next "/", and folders.
      mark: of this page, as the page before gave it; None for the first.
    Returns:
      the objects in the store's order, and None with the last page.
    """
    for attribute, reader in _READERS.items():
        if hasattr(system, attribute):
            return reader(system, bucket, prefix, "" if flat else "/", mark)
    return _everything(system, bucket, prefix, flat), None


def _of_s3(
    system: Any, bucket: str, prefix: str, delimiter: str, mark: Any
) -> tuple[list[Found], Any]:
    more = {"ContinuationToken": mark} if mark else {}
    answer = system.call_s3(
        "list_objects_v2",
        Bucket=bucket,
        Prefix=prefix,
        Delimiter=delimiter,
        **system.req_kw,
        **more,
    )
    found = [Found(o["Prefix"], {}) for o in answer.get("CommonPrefixes", ())]
    for one in answer.get("Contents", ()):
        found.append(Found(one["Key"], {"size": one["Size"], "ETag": one["ETag"]}))
    return found, answer.get("NextContinuationToken") if answer.get("IsTruncated") else None


def _of_gcs(
    system: Any, bucket: str, prefix: str, delimiter: str, mark: Any
) -> tuple[list[Found], Any]:
    asked = {"prefix": prefix, "delimiter": delimiter, "pageToken": mark}
    answer = system.call(
        "GET",
        "b/{}/o",
        bucket,
        maxResults=SIZE,
        fields=_FIELDS,
        json_out=True,
        **{name: value for name, value in asked.items() if value},
    )
    found = [Found(name, {}) for name in answer.get("prefixes", ())]
    found += [Found(one["name"], one) for one in answer.get("items", ())]
    return found, answer.get("nextPageToken")


def _of_azure(
    system: Any, bucket: str, prefix: str, delimiter: str, mark: Any
) -> tuple[list[Found], Any]:
    from fsspec import asyn

    async def asked() -> tuple[list[Found], Any]:
        async with system.service_client.get_container_client(bucket) as client:
            more = {"name_starts_with": prefix, "include": ["metadata"]}
            # Only the second asks for one level.
            blobs = (
                client.walk_blobs(delimiter=delimiter, **more)
                if delimiter
                else client.list_blobs(**more)
            )
            pages = blobs.by_page(continuation_token=mark)
            found = []
            async for one in await anext(pages):
                # A folder of Data Lake Storage is an object that says so.
                said = {k.lower(): v for k, v in (one.get("metadata") or {}).items()}
                if said.get("hdi_isfolder") == "true" or said.get("is_directory") == "true":
                    continue
                size = one.get("size")
                info = {} if size is None else {"size": size, "etag": one.get("etag")}
                found.append(Found(one["name"], info))
            return found, pages.continuation_token

    answer: tuple[list[Found], Any] = asyn.sync(system.loop, asked)
    return answer


_READERS = {"call_s3": _of_s3, "_call_list_objects": _of_gcs, "service_client": _of_azure}


def _everything(system: Any, bucket: str, prefix: str, flat: bool) -> list[Found]:
    root = f"{bucket}/{prefix}".rpartition("/")[0]
    infos = system.find(root, detail=True).values() if flat else system.ls(root, detail=True)
    start = len(str(system._strip_protocol(bucket)).rstrip("/")) + 1
    found = [
        Found(info["name"][start:] + ("/" if info["type"] == "directory" else ""), info)
        for info in infos
    ]
    return [one for one in found if one.key.startswith(prefix)]
