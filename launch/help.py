"""The help of a launcher: its flags by theme, each with its default."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from absl import flags

__all__ = ["THEMES", "text"]

# Theme -> the flags in it, in the order that help shows; what is nowhere is a matter of how.
THEMES: dict[str, tuple[str, ...]] = {
    "What": (
        *("images", "source", "part", "model", "generator", "generator_options", "weights"),
        *("weights_sha256", "rename", "input_size", "class_names", "parity", "target", "layer"),
        *("list_layers", "concepts"),
        *("direction", "boxes", "second_model", "second_weights"),
    ),
    "How": (),
    "Where": ("out", "export", "page_items", "max_error_rate", "profile_dir"),
    "Cluster": ("shard", "multiprocess", "coordinator", "num_processes", "process_id"),
}


def text(about: str, known: Iterable[flags.Flag[Any]]) -> str:
    """Returns the help of a launcher.

    Args:
      about: its docstring.      known: its flags.
    """
    found = {flag.name: flag for flag in known}
    # A new flag that no theme names lands under "How", and is not lost.
    named = {name for names in THEMES.values() for name in names}
    parts = [about.strip()]
    for theme, names in THEMES.items():
        chosen = [n for n in names if n in found]
        if theme == "How":
            chosen = sorted(set(found) - named)
        if chosen:
            parts.append("\n".join([f"{theme}:", *(_flag(found[n]) for n in chosen)]))
    parts.append(
        "Further: --flagfile=FILE with flags, --verbosity=1; --helpfull lists all there are."
    )
    return "\n\n".join(parts) + "\n"


def _flag(flag: flags.Flag[Any]) -> str:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    choices = getattr(flag.parser, "enum_values", None)
    about = f"<{'|'.join(choices)}>: {flag.help}" if choices else flag.help
    lines = textwrap.wrap(f"{name}: {about}", 80, initial_indent="  ", subsequent_indent="    ")
    if flag.default is not None:
        lines.append(f"    (default: {flag.default_as_str})")
    # Where the help itself says what the default is, a further line would contradict it.
    elif "efault" not in (flag.help or ""):
        lines.append("    (default: none)")
    limits = flag.parser.syntactic_help
    if limits and not choices and not flag.boolean:
        lines.append(f"    ({limits})")
    return "\n".join(lines)
