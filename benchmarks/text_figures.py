"""Which 2 % of a file's bytes keep the answer of a real byte classifier.

`python -m benchmarks.text_figures [--files=50] [--steps=40]`, with the extra `magika`: files of
Python's own installation and of the packages beside it, text of any kind, at most six of a
suffix, in an order that their names decide. Prints every file, then shares over all.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import sysconfig
import time
import zlib

import jax
import numpy as np

from perturb import text
from perturb.text import magika

AREA, STRETCH = 0.02, 12


def files(number, a_kind=6):
    """Paths by the checksum of their names: neither alphabet nor folder decides."""
    found, seen, counts = [], set(), collections.Counter()
    roots = [pathlib.Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    paths = {p for root in roots for p in root.glob("**/*") if p.suffix and p.suffix != ".pyc"}
    for path in sorted(paths, key=lambda p: (zlib.crc32(p.name.encode()), str(p))):
        if counts[path.suffix] < a_kind and path.is_file() and 2000 < path.stat().st_size < 60000:
            data = path.read_bytes()
            # A copy is no second file; of bytes that are no text no stretch can be read.
            if data not in seen and _is_text(data):
                seen.add(data)
                found.append(path)
                counts[path.suffix] += 1
        if len(found) == 2 * number:
            break
    return found


def _is_text(data):
    try:
        return data.decode().isprintable() or b"\0" not in data
    except UnicodeDecodeError:
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--draws", type=int, default=10)
    given = parser.parse_args()
    model = magika.load_magika()
    paths = files(given.files)
    tokens = np.stack([magika.tokens(p.read_bytes()) for p in paths])
    run = jax.jit(lambda model, x: jax.nn.softmax(model(x), -1))
    p = np.concatenate([np.asarray(run(model.model, model.embed(t[None]))) for t in tokens])
    # Only files that the network is sure of have an answer to keep, and none that is too short.
    known = np.flatnonzero((p.max(1) >= 0.9) & ((tokens != magika.PAD).mean(1) > 0.9))
    paths, tokens = [paths[i] for i in known[: given.files]], tokens[known[: given.files]]
    targets = p.argmax(1)[known[: given.files]]
    begun = time.process_time()
    found = text.find(
        model,
        tokens,
        targets,
        areas=AREA,
        stretch=STRETCH,
        steps=given.steps,
        key=jax.random.key(0),
    )
    sought = time.process_time() - begun
    masks = np.asarray(found.masks)[:, 0] > 0.5
    fills = {
        "pad": text.fill(model, "pad"),
        "other files": text.fill(model, "texts", texts=tokens),
        "random": text.fill(model, "random", length=tokens.shape[1]),
    }
    cards = []
    for path, line, target, mask in zip(paths, tokens, targets, masks, strict=True):
        # Bytes of every file but itself, or the fill could bring back what was hidden.
        others = tokens[(tokens != line).any(1)]
        here = {**fills, "other files": text.fill(model, "texts", texts=others)}
        one = text.card(model, line, int(target), mask, here, draws=given.draws)
        cards.append(one)
        shown = [
            bytes(int(b) for b in line[a:z] if b < 256).decode("latin-1")
            for a, z in text.evidence.stretches(mask, shortest=6)
        ]
        print(
            f"{path.name[:28]:28} {model.model.class_names[target]:12} kept {one.kept['pad']:.3f}, "
            f"elsewhere {one.elsewhere['pad']:.3f}, {one.verdict}, {one.runs} stretches: "
            f"{' | '.join(map(repr, shown))[:70]}",
            flush=True,
        )
    kept = {name: np.array([c.kept[name] for c in cards]) for name in fills}
    away = np.array([c.elsewhere["pad"] for c in cards])
    print(
        f"{len(cards)} files, {len(set(targets.tolist()))} types, {masks.sum(1).mean():.0f} bytes"
    )
    print(f"p >= .9 on {(kept['pad'] >= 0.9).mean():.2f} of the files")
    for name, values in kept.items():
        print(f"kept under {name}: mean {values.mean():.3f}, median {np.median(values):.3f}")
    print(f"the same mask elsewhere: mean {away.mean():.3f}, median {np.median(away):.3f}")
    print("verdicts", dict(collections.Counter(c.verdict for c in cards)))
    print("stretches a file, median", np.median([c.runs for c in cards]))
    print(f"one core: {sought:.0f} s for the masks, {time.process_time() - begun:.0f} s with cards")


if __name__ == "__main__":
    main()
