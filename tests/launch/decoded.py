"""Ways to decode ahead of the device, on the same photographs: threads, our processes, grain's.

  python -m tests.launch.decoded --images=$PERTURB_DATA/imagenet/images --number=300 --way=processes
  python -m tests.launch.decoded --images=... --number=40 --side=4000 --way=threads

Prints seconds to the first picture, to the last one, and processor time a picture. grain has to be
installed.
"""

import argparse
import io
import itertools
import pathlib
import resource
import time

import PIL.Image

import perturb
from launch.inputs import images
from launch.inputs.decoding import Decoders
from launch.job.ahead import ahead

GEOMETRY = perturb.short_side(256).crop(224)
WORKERS = 2


def pixels(data):
    """What a worker of grain runs: a function of a module that it can import."""
    return images.picture(data, GEOMETRY).pixels


def photographs(folder, number, side):
    """The bytes of `number` photographs, enlarged so that the longer side is `side` px if that is
    given.
    """
    found = []
    for path in sorted(pathlib.Path(folder).iterdir())[:number]:
        data = path.read_bytes()
        if side:
            with PIL.Image.open(path) as image:
                scale = side / max(image.size)
                size = tuple(round(scale * n) for n in image.size)
                buffer = io.BytesIO()
                image.convert("RGB").resize(size).save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
        found.append(data)
    return list(itertools.islice(itertools.cycle(found), number))


def through(way, data):
    """Yields decoded pictures."""
    if way == "threads":
        yield from ahead(pixels, data, workers=WORKERS, window=32)
    elif way == "processes":
        with Decoders(WORKERS) as decoders:
            yield from ahead(
                lambda one: decoders.picture(one, GEOMETRY), data, workers=WORKERS, window=32
            )
    else:
        import grain
        from absl import flags

        flags.FLAGS(["decoded"])  # grain reads absl's flags
        # A worker of grain reads 16 ahead: with two of them, the 32 of the other ways' window.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
        found = grain.MapDataset.source(data).map(pixels).to_iter_dataset(options)
        yield from found.mp_prefetch(grain.MultiprocessingOptions(num_workers=WORKERS))


def spent():
    """Processor time of this process and of those that it has waited for, in seconds."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--side", type=int)
    parser.add_argument("--way", choices=["threads", "processes", "grain"], required=True)
    given = parser.parse_args()
    data = photographs(given.images, given.number, given.side)
    # From before the workers are started: what starting costs belongs to the first picture.
    cpu, begin, count, first = spent(), time.monotonic(), 0, 0.0
    for _ in through(given.way, data):
        first = first or time.monotonic() - begin
        count += 1
    seconds, cpu = time.monotonic() - begin, spent() - cpu
    print(
        f"{given.way}: {count} pictures, the first after {first:.2f} s, all after {seconds:.1f} s, "
        f"{1e3 * cpu / count:.1f} ms of processor time each"
    )


if __name__ == "__main__":
    main()
