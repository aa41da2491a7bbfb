"""Completion of the commands' flags and their values, for bash and zsh.

  eval "$(perturb-completion)"  # or: python -m launch.completion >> ~/.bashrc

Flags are those of the installed version: run it again after an update.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping

from absl import flags as absl_flags

__all__ = ["COMMANDS", "main", "script", "words"]

COMMANDS = ("masks", "evaluate", "dissect", "walk", "features", "convert", "studio", "compare")
_SCRIPT = """\
# Made by perturb-completion: flags of the perturb-* commands, for bash and zsh.
if [ -n "${ZSH_VERSION:-}" ]; then
  autoload -Uz +X compinit bashcompinit
  (( ${+functions[compdef]} )) || compinit
  bashcompinit
fi
_perturb() {
  local whole="${COMP_LINE:0:COMP_POINT}" flags values name
  local word="${whole##* }"
  case "${1##*/}" in
@FLAGS@
  esac
  case "$word" in
    --*=*)
      name="${word%%=*}"
      case "$flags" in *" $name="*) ;; *) return ;; esac
      values=""
      case "${1##*/} $name" in
@VALUES@
      esac
      # bash breaks words at "=": what is completed begins behind it.
      if [ -n "$values" ]; then
        COMPREPLY=($(compgen -W "$values" -- "${word#*=}"))
      else
        COMPREPLY=($(compgen -f -- "${word#*=}"))
      fi
      [ -n "${ZSH_VERSION:-}" ] && COMPREPLY=("${COMPREPLY[@]/#/$name=}") ;;
    *)
      COMPREPLY=($(compgen -W "$flags" -- "$word"))
      [[ "${COMPREPLY[0]:-}" == *= ]] && compopt -o nospace 2>/dev/null ;;
  esac
  return 0
}
complete -F _perturb @COMMANDS@
"""


def words(command: str) -> dict[str, tuple[str, ...]]:
    """Returns the flags of a command as they are typed, each with the values that it may have.

    Args:
      command: one of `COMMANDS`.
    """
    # Importing a launcher defines its flags; the studio is a package, which defines them in the
    # file that `python -m` runs.
    module = importlib.import_module(f"launch.{command}" + ".__main__" * (command == "studio"))
    known = absl_flags.FLAGS.get_key_flags_for_module(module.__name__)
    # Names that mean something else to the other launchers are kept apart from absl's table.
    own = getattr(module, "OWN", None)
    known += [own[name] for name in own] if own is not None else []
    found: dict[str, tuple[str, ...]] = {"--help": ()}
    for flag in sorted(known, key=lambda f: f.name):
        if flag.boolean:
            found |= {f"--{flag.name}": (), f"--no{flag.name}": ()}
        else:
            # The "=" belongs to the word, so that the value can be typed on at once.
            found[f"--{flag.name}="] = tuple(getattr(flag.parser, "enum_values", None) or ())
    return found


def script(commands: Mapping[str, Mapping[str, tuple[str, ...]]]) -> str:
    """Returns the script that a shell evaluates.

    Args:
      commands: for each name the flags and their values, see `words`.
    """
    flags = [f'    perturb-{n}) flags=" {" ".join(found)} " ;;' for n, found in commands.items()]
    values = [
        f'        "perturb-{n} {flag[:-1]}") values="{" ".join(may)}" ;;'
        for n, found in commands.items()
        for flag, may in found.items()
        if may
    ]
    names = " ".join(f"perturb-{n}" for n in commands)
    # Not a format string: the script is full of the shell's own braces.
    return (
        _SCRIPT.replace("@FLAGS@", "\n".join(flags))
        .replace("@VALUES@", "\n".join(values))
        .replace("@COMMANDS@", names)
    )


def main() -> int:
    """Prints the script; returns the exit code."""
    sys.stdout.write(script({name: words(name) for name in COMMANDS}))
    return 0


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(f"{(__doc__ or '').strip()}\n")
        sys.exit(0)
    sys.exit(main())
