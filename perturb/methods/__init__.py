"""The published methods: each is a choice of masks, fills, rewards and a step rule."""

from perturb import messages, registry
from perturb.methods._run import Result, stream
from perturb.methods.channels import ChannelResult, channels, class_statistics
from perturb.methods.extremal import extremal
from perturb.methods.meaningful import MinimalRegion, Smoothness, meaningful, minimal_region
from perturb.methods.sufficient import SufficientRegion, sufficient, sufficient_region
from perturb.types import Function

__all__ = [
    "NAMES",
    "ChannelResult",
    "MinimalRegion",
    "Result",
    "Smoothness",
    "SufficientRegion",
    "channels",
    "class_statistics",
    "extremal",
    "get",
    "meaningful",
    "minimal_region",
    "stream",
    "sufficient_region",
]

# One line a name: the function, or where it is (see `perturb.registry`). `launch.masks` offers each
# of them, and takes its options from the signature.
_NAMED: dict[str, Function | str] = {
    "extremal": extremal,
    "meaningful": meaningful,
    "channels": channels,
    "sufficient": sufficient,
}
NAMES = tuple(_NAMED)


def get(name: str) -> Function:
    """Returns the method of that name.

    Args:
      name: one of `NAMES`, such as "extremal".
    Raises:
      ValueError: if the name is unknown.

    >>> get("extremal") is extremal
    True
    """
    if name not in _NAMED:
        raise messages.one_of("method", name, NAMES)
    found: Function = registry.resolve(_NAMED[name])
    return found
