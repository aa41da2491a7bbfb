"""Memory and time of listing a large folder.

python -m tests.launch.scanned --files=1000000 --out=/dev/shm/scanned
"""

import argparse
import json
import pathlib
import resource
import shutil
import time

from launch.inputs import listing


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    folder = pathlib.Path(given.out)
    shutil.rmtree(folder, ignore_errors=True)
    for i in range(given.files):
        # As large data sets are stored: no folder with a million names.
        if i % 10_000 == 0:
            part = folder / f"{i // 10_000:04d}"
            part.mkdir(parents=True)
        # Empty, for a listing looks at names and sizes, and opens nothing.
        (part / f"{i:08d}.png").touch()
    # The peak until now: the paths made above must not count as the listing's memory.
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found = listing.scan(str(folder))
    digest = found.sha256()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = time.monotonic() - begin
    shutil.rmtree(folder)
    print(
        json.dumps(
            {
                "files": len(found.items),
                "mb": round(grown),
                "s": round(seconds, 1),
                "sha256": digest[:8],
            }
        )
    )


if __name__ == "__main__":
    main()
