"""The application: which address asks which question. Nothing is written; what is known is kept in
memory.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from absl import logging
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from launch import words
from launch.report import pictures
from launch.studio import script
from launch.studio.guard import MOST, Guard
from launch.studio.masks import GRID, Masks, cells
from launch.studio.painting import Painting
from launch.studio.units import Units
from launch.studio.work import Busy, Cancelled, Lane, plain
from launch.studio.world import Missing, World
from perturb import operators
from perturb.types import Function, Options, PyTree, Record

__all__ = ["build"]

# Quick questions, and long work: how many at a time, and how many may wait.
QUICK, LONG = (2, 128), (1, 128)
_KINDS = {"js": "text/javascript", "css": "text/css", "html": "text/html", "svg": "image/svg+xml"}
_STATIC = (
    *("studio.css", "common.js", "canvas.js", "masks.js", "generator.js", "units.js"),
    *("studio.js", "icon.svg"),
)


class Studio:
    """One world behind all tabs of all browsers; no question changes what another gets."""

    def __init__(self, world: World):
        self.world = world
        self.masks, self.units = Masks(world), Units(world)
        self.painting = Painting(world) if world.generator is not None else None
        # Two lanes, so that a brush does not wait behind a map of half a minute.
        self.quick, self.long = Lane(*QUICK), Lane(*LONG)
        self.ended = threading.Event()
        self.questions: dict[str, Callable[[Options], Any]] = {
            "answers": self.masks.answers,
            "verdict": self.masks.verdict,
            "score": self.masks.score,
            "ablate": self.units.ablate,
            "script": lambda asked: {"text": script.masks(world, asked)},
            "wall": lambda asked: self._painting().wall(asked),
            "paint": lambda asked: self._painting().paint(asked),
            "painted_script": lambda asked: {"text": script.generator(self._painting(), asked)},
        }
        self.works: dict[str, Function] = {
            "map": self.masks.map,
            "cards": self.units.cards,
            "units": lambda asked, report: self._painting().units(asked, report),
            "effects": lambda asked, report: self._painting().effects(asked, report),
            "directions": lambda asked, report: self._painting().directions(report),
        }

    def about(self) -> Record:
        """What there is to look at, for the page."""
        found = {}
        for name, model in self.world.models.items():
            found[name] = {
                "called": self.world.called[name],
                "classes": list(model.class_names),
                # Units are switched in networks that give logits: elsewhere there is no tab
                # of them.
                "layers": self.units.layers(name) if model.output == "logits" else {},
            }
        return {
            "models": found,
            "gallery": [
                {"id": e.id, "name": e.name, "target": e.target}
                for e in self.world.gallery.values()
            ],
            "generator": self.painting.about() if self.painting else None,
            "fills": list(operators.NAMES),
            "grid": GRID,
            "most": MOST,
        }

    def _painting(self) -> Painting:
        if self.painting is None:
            raise ValueError("there is no generator here: start the studio with --generator")
        return self.painting

    def warm(self) -> None:
        """Compiles what the first questions need, while the page is being opened."""
        try:
            first = next(iter(self.world.models))
            picture = next(iter(self.world.gallery))
            asked = {"model": first, "picture": picture}
            self.masks.answers(asked)
            size = self.world.pixels(picture, first).shape[:2]
            rows, columns = cells(size)
            # Any mask will do: what is wanted is the compiled program.
            mask = _full(rows * columns)
            self.masks.score({**asked, "mask": mask, "seen": "alone"})
            self.masks.map(asked, self._unless_ended)
            self._unless_ended()
            self.masks.verdict({**asked, "area": 0.1})
            self._unless_ended()
            if self.painting is not None:
                self.painting.wall({"first": 0, "count": 16})
        except Cancelled:
            pass
        except Exception as error:  # it is asked again, and then says so
            logging.warning("studio: could not prepare: %s", words.brief(str(error)))

    def close(self) -> None:
        """Takes no more questions, and ends `warm` at its next step."""
        self.ended.set()
        self.quick.close()
        self.long.close()
        self.world.decoders.close()

    def _unless_ended(self, *_: object) -> None:
        if self.ended.is_set():
            raise Cancelled


def _full(number: int) -> str:
    return base64.b64encode(b"\xff" * ((number + 7) // 8)).decode()


def build(world: World, token: str) -> tuple[Guard, Studio]:
    """Returns the guarded application of a world, and what stands behind it."""
    studio = Studio(world)

    async def asked(request: Request) -> Record:
        try:
            # The body was counted on its way in, see `guard`.
            found = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise ValueError("a question must be a JSON object") from error
        if not isinstance(found, dict):
            raise ValueError("a question must be a JSON object")
        return found

    async def page(request: Request) -> Response:
        return _file("index.html")

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "page.css":
            text = importlib.resources.files("launch.report") / "page.css"
            return Response(text.read_bytes(), media_type="text/css")
        # A list of names, not a folder: no path of a request ever reaches the disk.
        return _file(name) if name in _STATIC else PlainTextResponse("not found\n", 404)

    async def about(request: Request) -> Response:
        # Shapes of layers are traced, which takes a second: not in the loop that serves all tabs.
        return _json(await run_in_threadpool(studio.about))

    async def quick(request: Request) -> Response:
        function = studio.questions.get(request.path_params["name"])
        if function is None:
            return PlainTextResponse("not found\n", 404)
        given = await asked(request)
        return _json(await studio.quick.once(lambda: function(given)))

    async def long(request: Request) -> Response:
        function = studio.works.get(request.path_params["name"])
        if function is None:
            return PlainTextResponse("not found\n", 404)
        given = await asked(request)
        lines = studio.long.stream(lambda report: function(given, report))
        # The first line here: "too many requests" must become a status, not a line of a stream.
        first = await anext(lines)
        return StreamingResponse(_after(first, lines), media_type="application/x-ndjson")

    async def picture(request: Request) -> Response:
        model = request.query_params.get("model", next(iter(world.models)))

        def draw() -> bytes:
            found = pictures.levels(world.pixels(request.path_params["id"], model))
            return pictures.png(found)

        return Response(await studio.quick.once(draw), media_type="image/png")

    async def dropped(request: Request) -> Response:
        data = await request.body()
        return _json({"id": await studio.quick.once(lambda: world.drop(data))})

    routes = [
        Route("/", page),
        Route("/static/{name}", static),
        Route("/api/world", about),
        Route("/api/ask/{name}", quick, methods=["POST"]),
        Route("/api/long/{name}", long, methods=["POST"]),
        Route("/api/picture/{id:path}", picture),
        Route("/api/pictures", dropped, methods=["POST"]),
    ]
    handlers: Any = {
        Missing: _refused(404),
        ValueError: _refused(400),
        Busy: lambda request, error: PlainTextResponse(
            "too many requests at once: try again\n", 503
        ),
        Cancelled: lambda request, error: PlainTextResponse("cancelled\n", 503),
        # No traceback to the browser: it would tell a stranger's page about this machine.
        Exception: lambda request, error: PlainTextResponse("failed: see the terminal\n", 500),
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token), studio


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for found in rest:
            yield found
    finally:
        # A browser that goes away ends the work at its next word.
        await rest.aclose()  # type: ignore[attr-defined]


def _refused(status: int) -> Callable[[Request, Exception], Response]:
    def handler(request: Request, error: Exception) -> Response:
        return PlainTextResponse(words.brief(str(error)) + "\n", status)

    return handler


def _file(name: str) -> Response:
    file = importlib.resources.files("launch.studio") / "static" / name
    return Response(file.read_bytes(), media_type=_KINDS[name.rsplit(".", 1)[-1]])


def _json(found: PyTree) -> Response:
    return Response(json.dumps(plain(found), allow_nan=False), media_type="application/json")
