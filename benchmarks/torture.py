"""Every torture of the jobs at full size, one after the other; prints one JSON object each.

python -m benchmarks.torture [--short]
"""

import subprocess
import sys
import tempfile

from tests.launch.test_killing import MEMORY

STORE = "tests.launch.killing --store"
FULL = {
    STORE: ["--random=60", "--told=20", "--races=200", "--hosts=8"],
    "tests.launch.killing": ["--random=200", "--told=50", "--races=1000", "--hosts=20"],
    "tests.launch.hostile": ["--number=1000"],
    "tests.launch.lines": ["--number=500"],
    "tests.weights.hostile": [],
    "tests.launch.simulated": ["--items=100000", "--hosts=64", "--kills=40", "--seconds=0.05"],
    "tests.launch.devices": [],
}
SHORT = {
    STORE: ["--step=19", "--random=4", "--told=2", "--races=9", "--hosts=2"],
    "tests.launch.killing": ["--step=9", "--random=9", "--told=5", "--races=9", "--hosts=4"],
    "tests.launch.hostile": ["--number=60"],
    "tests.launch.lines": ["--number=20"],
    "tests.weights.hostile": [],
    "tests.launch.simulated": ["--items=1000", "--hosts=8", "--kills=4"],
    "tests.launch.devices": ["--images=6", "--slots=2,3", "--devices=1,2", "--processes=1"],
}

# These need no folder.
ALONE = ("tests.launch.hostile", "tests.launch.lines", "tests.weights.hostile")


def main():
    worst = 0
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        for module, arguments in (SHORT if "--short" in sys.argv else FULL).items():
            own = [] if module in ALONE else [f"--out={folder}/torture"]
            print(module, *arguments, flush=True)
            # A process each: an audit hook, a limit or a fork of one is not to meet the next.
            worst |= subprocess.run(
                [sys.executable, "-m", *module.split(), *arguments, *own]
            ).returncode
    sys.exit(worst)


if __name__ == "__main__":
    main()
