"""What a name stands for: the thing itself, or `package.module:name` that is imported when it is
asked for.

So an attribution, a metric, an operator or a reward is one file of its own and one line where the
names are.
"""

from __future__ import annotations

import importlib
from typing import Any

from perturb.types import PyTree

__all__ = ["resolve"]


def resolve(entry: Any) -> PyTree:
    """Returns what an entry stands for.

    Args:
      entry: `package.module:name`, or the thing itself.

    >>> resolve("math:floor")(2.5), resolve(abs)(-3)
    (2, 3)
    """
    if not isinstance(entry, str):
        return entry
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
