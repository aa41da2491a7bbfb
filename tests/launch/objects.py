"""A store of objects on a disk, behind fsspec, for tests: what one process puts others see, and it
outlives them.

Built on fsspec's local files. As in the stores of clouds, an object is put as a whole or not at
all, and a second one is refused where the first must stand.
"""

import os
import pathlib
import uuid

import fsspec
from fsspec.implementations.local import LocalFileSystem

from launch.job import store

SCHEME = "disk"
# What the jobs ask of a store.
CALLS = ("pipe_file", "put_file", "cat_file", "ls", "isfile", "rm_file", "find", "glob", "info")


class Objects(LocalFileSystem):
    protocol = SCHEME
    uploads = None

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix(f"{SCHEME}://").strip("/")

    def ls(self, path, detail=False, **more):
        if not os.path.isdir(self._strip_protocol(path)):
            raise FileNotFoundError(path)
        return super().ls(path, detail=detail, **more)

    def pipe_file(self, path, value, mode="overwrite", **more):
        to = pathlib.Path(self._strip_protocol(path))
        to.parent.mkdir(parents=True, exist_ok=True)
        # Elsewhere, but on the same disk: an upload is nowhere before it is done.
        upload = pathlib.Path(self.uploads or to.parent.parent.parent, f"up-{uuid.uuid4().hex}")
        upload.write_bytes(value)
        try:
            if mode == "create":
                # Refused by the kernel where there is one: of two writers only one can succeed.
                os.link(upload, to)
            else:
                os.replace(upload, to)
        finally:
            upload.unlink(missing_ok=True)

    def put_file(self, lpath, rpath, mode="overwrite", **more):
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read(), mode=mode)


fsspec.register_implementation(SCHEME, Objects, clobber=True)


def address(path):
    """The address of a local path in this store."""
    return store.Address(f"{SCHEME}://{str(path).lstrip('/')}")


def shim(act):
    """Puts `act(number, name, call, arguments)` in place of every call to the store."""
    numbers = iter(range(10**9))

    def wrapped(name, real):
        def call(self, *arguments, **keywords):
            return act(next(numbers), name, lambda: real(self, *arguments, **keywords), arguments)

        return call

    for name in CALLS:
        setattr(Objects, name, wrapped(name, getattr(Objects, name)))
