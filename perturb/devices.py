"""Work spread over the devices of this process: each runs the program that one alone would run.

>>> list(each(lambda weight, n, item: weight * item, 2.0, [1.0, 3.0]))
[2.0, 6.0]
"""

from perturb._numerics.devices import each

__all__ = ["each"]
