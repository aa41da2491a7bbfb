"""The lowest versions that are declared, of the package and of what its extras bring to users.

  python -m tests.minimums

Prints one requirement a line, as `make audit` gives them to pip-audit.
"""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
# For those who develop or document it.
OURS = ("test", "docs", "oracles")


def lowest(requirement):
    """Returns a requirement of its lowest version alone, or None where it names none.

    >>> lowest("jax[cuda12]>=0.10,<0.13"), lowest("torch<2.13")
    ('jax==0.10', None)
    """
    found = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*[>=]=\s*([\w.]+)", requirement)
    return found and f"{found[1]}=={found[2]}"


def minimums():
    """Returns the requirements, sorted."""
    asked = (ROOT / "requirements.txt").read_text().splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, more in extras["optional-dependencies"].items():
        asked += [] if name in OURS else more
    return sorted({pin for line in asked if (pin := lowest(line))})


if __name__ == "__main__":
    print(*minimums(), sep="\n")
