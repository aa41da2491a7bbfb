"""Broken and hostile picture files, made from good ones, and how the reader takes them.

  python -m tests.launch.hostile --number=600

Prints one JSON object: files, how many were read and refused, what else happened, the longest
second.
"""

import argparse
import io
import json
import resource
import struct
import time
import zlib

import numpy as np
import PIL.Image

from launch.inputs import images

KINDS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seeds():
    """Good files of every kind, some with the parts that decoders stumble over."""
    # Noise does not compress: wherever a file is cut, there are pixels of it missing.
    noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    image = PIL.Image.fromarray(noise)
    exif = PIL.Image.Exif()
    # Orientation 6, a quarter turn: sides change places after the size in the head was read.
    exif[0x0112] = 6
    found = [encoded(image, kind) for kind in KINDS]
    frames = [image, image.rotate(90), image.rotate(180)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        found.append(encoded(image, kind, save_all=True, append_images=frames))
    found.append(
        encoded(image, "JPEG", progressive=True, exif=exif.tobytes(), icc_profile=b"x" * 999)
    )
    found.append(encoded(image, "TIFF", compression="tiff_lzw"))
    found.append(encoded(image, "TIFF", compression="jpeg"))
    return found


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(side, *chunks, bits=8, colour=0):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def bombs():
    """Small files that ask for much: pixels, text, profiles, frames."""
    # 200 MB of zeros are about 200 kB when compressed.
    zeros = zlib.compress(bytes(200_000_000), 9)
    return [
        # 81 million pixels, over the limit of 50 million, and all of them there.
        png(9_000, chunk(b"IDAT", zlib.compress(bytes(81_000_000), 9))),
        # 400 million by its head; a reader that looks at the data first finds none.
        png(20_000, chunk(b"IDAT", b"")),
        # 14 GB in four channels.
        png(60_000, chunk(b"IDAT", b""), colour=6),
        # The picture is whole (8 rows of one filter byte and 8 levels); its text is 200 MB.
        png(8, chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"IDAT", zlib.compress(bytes(72)))),
        png(8, chunk(b"iCCP", b"a\0\0" + zeros), chunk(b"IDAT", zlib.compress(bytes(72)))),
        # A screen of 65535 x 65535 px and a colour table, and the file ends where its picture
        # begins.
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF0, 0, 0) + bytes(6) + b",",
        # Kinds that have a head and no checksum: nothing but the numbers says that they are large.
        b"P6 60000 60000 255\n",
        b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 50000, 50000, 1, 24, 0, 0, 0, 0, 0, 0),
    ]


def mutations(number, seed=0):
    """Yields `number` broken files: cut, flipped, zeroed, spliced, with lies in their heads."""
    rng = np.random.default_rng(seed)
    good = seeds()
    for i in range(number):
        data = bytearray(good[i % len(good)])
        # All good files are broken in one way before the next way begins.
        way = i // len(good) % 6
        at = int(rng.integers(len(data)))
        if way == 0:
            data = data[:at]
        elif way == 1:
            for place in rng.integers(0, len(data), 8):
                # One bit of each of eight bytes: most lands in the compressed stream.
                data[place] ^= 1 << int(rng.integers(8))
        elif way == 2:
            data[at : at + 200] = bytes(len(data[at : at + 200]))
        elif way == 3:
            # The head of one kind and the tail of another.
            other = good[int(rng.integers(len(good)))]
            data = data[:at] + other[len(other) // 2 :]
        elif way == 4:  # the first bytes hold the sizes and offsets
            for place in rng.integers(4, min(64, len(data)), 6):
                data[place] = int(rng.choice([0, 1, 127, 128, 255]))
        else:
            data[at:at] = rng.integers(0, 256, 300, np.uint8).tobytes()
        yield bytes(data)


def judge(files):
    """Reads the files; returns counts and the longest time in seconds."""
    counts = {"files": 0, "read": 0, "refused": 0, "other": [], "longest": 0.0}
    for data in files:
        begin = time.monotonic()
        counts["files"] += 1
        try:
            images.decode(data)
            counts["read"] += 1
        except images.BadImage:
            counts["refused"] += 1
        # What a caller does not expect is counted, and not raised: one run is to name them all.
        except BaseException as error:
            counts["other"].append(repr(error))
        counts["longest"] = max(counts["longest"], time.monotonic() - begin)
    return counts


def peak():
    """The largest memory this process has had, in MB."""
    # Linux gives kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=600)
    given = parser.parse_args()
    # Read once before, for a broken file must not leave a decoder in another state.
    before = [images.decode(data).tobytes() for data in seeds()]
    made = bombs()
    start = peak()
    found = {"bombs": judge(made), "bombs_mb": round(peak() - start, 1)}
    found["mutations"] = judge(mutations(given.number))
    found["good_changed"] = before != [images.decode(data).tobytes() for data in seeds()]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
