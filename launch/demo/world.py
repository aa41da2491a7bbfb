"""The picture world, which lies in `perturb.embedded.world`; this path keeps working."""

from perturb.embedded.world import *  # noqa: F403
from perturb.embedded.world import __all__ as __all__
