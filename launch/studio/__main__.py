r"""A page to play with: masks of pictures, a generator painted with its units, the units of a
classifier.

  python -m launch.studio  # the embedded networks and generator, offline
  python -m launch.studio --model=squeezenet1_1 --weights=FILE.safetensors --class_names=FILE \
      --images=photos
  python -m launch.studio --generator=my.nets:load --concepts=my.nets:concepts

Prints one address on stdout, http://127.0.0.1:PORT/?token=..., and serves it to this machine alone
until Ctrl-C. Writes nothing. Needs starlette and uvicorn: pip install 'perturb-dissect[studio]'.
"""

from __future__ import annotations

import secrets
import socket
import threading
from typing import Any

from absl import flags as absl_flags
from absl import logging

from launch import flags
from perturb.types import PyTree

_IMAGES, _MODEL, _WEIGHTS, _NAMES = flags.shared("images", "model", "weights", "class_names")
_GENERATOR, _CONCEPTS, _OPTIONS = flags.shared("generator", "concepts", "generator_options")
# Of this launcher alone: others give these names another meaning.
OWN = absl_flags.FlagValues()
_PORT = absl_flags.DEFINE_integer(
    "port",
    0,
    "Port on 127.0.0.1; 0 takes a free one.",
    lower_bound=0,
    upper_bound=65535,
    flag_values=OWN,
)
_SECOND = absl_flags.DEFINE_string(
    "second_model",
    None,
    "Another network, shown beside the first.",
    flag_values=OWN,
)
_SECOND_WEIGHTS = absl_flags.DEFINE_string(
    "second_weights", None, "Weight file of --second_model.", flag_values=OWN
)
_GENERATOR_WEIGHTS = absl_flags.DEFINE_string(
    "generator_weights",
    None,
    "Weight file of --generator, where a --model is given too.",
    flag_values=OWN,
)


def main() -> int:
    """Loads what the flags ask for and serves it; returns the exit code."""
    if _SECOND.value and not _MODEL.value:
        raise ValueError(
            "--second_model needs --model: without it both embedded networks are shown"
        )
    try:
        import uvicorn

        from launch.studio import app, world
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise ValueError(
            f"the studio needs {error.name}, which is not installed: pip install "
            "'perturb-dissect[studio]'"
        ) from error
    # --weights belongs to the only thing named; with both a model and a generator to the model.
    alone = _GENERATOR.value is not None and _MODEL.value is None
    shown = world.load(
        model=_MODEL.value,
        weights=None if alone else _WEIGHTS.value,
        second=_SECOND.value,
        second_weights=_SECOND_WEIGHTS.value,
        class_names=_NAMES.value,
        listed=_IMAGES.value,
        generator=_GENERATOR.value,
        generator_weights=_GENERATOR_WEIGHTS.value or (_WEIGHTS.value if alone else None),
        generator_options=_OPTIONS.value,
        concepts=_CONCEPTS.value,
    )
    # New for every start: an address in an old history opens nothing.
    token = secrets.token_urlsafe(24)
    served, studio = app.build(shown, token)
    # Bound here, so that the address printed is served by this process and no other.
    listening = listen(_PORT.value)
    server: Any = uvicorn.Server(config(served))
    # Waited for in the end: a process that ends while XLA compiles in another thread can crash.
    warming = threading.Thread(target=studio.warm)
    warming.start()
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/?token={token}", flush=True)
    logging.info("open this address in a browser; Ctrl-C ends the studio")
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again after it has ended
        pass
    finally:
        studio.close()
        warming.join()
    return 0


def listen(port: int) -> socket.socket:
    """Returns a socket on a port of 127.0.0.1; 0 takes a free one."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ValueError(f"--port={port}: {error.strerror}; 0 takes a free one") from error


def config(served: Any) -> PyTree:
    """Returns the settings of the server: quiet, and not for more than a machine's own browsers."""
    import uvicorn

    return uvicorn.Config(
        served,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=512,
        timeout_graceful_shutdown=1,
        lifespan="off",
    )


if __name__ == "__main__":
    flags.run(main, own=OWN)
