"""A job on the command line, and reading it back: the same for twelve pictures and a million."""

import subprocess
import sys

from launch import results

out = "out/examples/job"
command = ("launch.masks", "--model=demo", "--areas=0.1", "--steps=40", f"--out={out}")
subprocess.run([sys.executable, "-m", *command], check=True)
run = results.load(out)
print(run["masks"].shape, "masks")
for row in run["rows"][:3]:
    print(row["id"], row["area"], row["evidence"]["verdict"])
print("the page:", f"{out}/report/index.html")
