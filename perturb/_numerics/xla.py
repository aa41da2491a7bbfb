"""What depends on the processor: two forms of one computation, and a guard against wrong fusions on
CPUs.

On a GPU every step of a loop that is not counted beforehand waits for the host, and every small sum
is a kernel of its own; `by_platform` gives it another form of the same numbers.

The guard is against a kernel library of XLA's on CPUs, YNNPACK, that gets some fusions wrong.
jaxlib 0.10 and 0.11 hand it some products that are summed, and under jit it gets them wrong: for
`(x * m[:, None, None] * w).sum(...)` gathered at a class, the gradient for `m` is off by three
quarters of its size, without any warning. jaxlib 0.12 is right, but there its sums are rounded by
the size of the batch, so that a mask would depend on its neighbours. The fusion brings no
measurable speed here, so it is switched off, and a first call checks that gradients are right.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jaxlib.version

from perturb.types import Function, PyTree

__all__ = ["by_platform", "check_gradients", "one_thread_if_alone", "switch_off_wrong_fusions"]

T = TypeVar("T")

FLAG = "--xla_cpu_experimental_ynn_fusion_type="
ONE_THREAD = "xla_cpu_multi_thread_eigen"


def by_platform(gpu: Callable[..., T], other: Callable[..., T], *args: object) -> T:
    """Returns `gpu(*args)` where the program is compiled for a GPU, `other(*args)` elsewhere."""
    found: T = jax.lax.platform_dependent(*args, cuda=gpu, rocm=gpu, default=other)
    return found


def one_thread_if_alone(slots: Callable[..., jax.Array], **options: Any) -> Function:
    """Compiles a function for one thread of a CPU where it is called for a single slot.

    XLA cuts the sums of a convolution or a matrix product into parts by the number of threads, so
    that their last bits depend on how many threads there are. In one thread they do not, and a
    program of one slot gains little from more: other slots run beside it, each in a thread of its
    own.

    Args:
      slots: of the function's arguments an array whose first axis are the slots.
      options: of `jax.jit`.
    """

    def compiled(function: Callable[..., T]) -> Callable[..., T]:
        # Two compiled forms, because options of the compiler belong to the jitted function, not to
        # a call.
        every = jax.jit(function, **options)
        alone = jax.jit(function, compiler_options={ONE_THREAD: False}, **options)

        @functools.wraps(function)
        def call(*args: object, **kwargs: object) -> T:
            # Inside another program its options hold.
            array = slots(*args, **kwargs)
            chosen = alone if len(array) == 1 and _on_cpu(array) else every
            found: T = chosen(*args, **kwargs)
            return found

        return call

    return compiled


def _on_cpu(array: PyTree) -> bool:
    if isinstance(array, jax.core.Tracer):
        return False
    if isinstance(array, jax.Array):
        found: bool = next(iter(array.devices())).platform == "cpu"
        return found
    return jax.default_backend() == "cpu"


def switch_off_wrong_fusions() -> None:
    """Adds the flag to XLA_FLAGS, which XLA reads at the first computation of a process.

    Only for releases that are known to need and to know it: XLA ends the process at a flag it does
    not know.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # A value that the user has set stays: someone may want to measure the fusion.
    if jaxlib.version.__version__.startswith(("0.10.", "0.11.", "0.12.")) and FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()


@functools.cache
def check_gradients() -> None:
    """Compares gradients under jit with their closed form, for one and for two pictures, once a
    process.

    Raises:
      RuntimeError: if they differ, with what to do.
    """
    # The faulty fusion is one of the CPU compiler's.
    if jax.default_backend() != "cpu":
        return
    # A program in which the fault shows: a product, summed over places, read at a
    # class. Values that vary, so that a gradient taken from the wrong place shows.
    x = jnp.cos(jnp.arange(1024.0).reshape(2, 8, 8, 8))
    w = jnp.sin(jnp.arange(32.0).reshape(8, 4))

    def score(m: jax.Array, x: jax.Array) -> jax.Array:
        maps = (x * m[:, None, None, :])[..., None] * w
        return maps.sum((1, 2, 3))[jnp.arange(len(x)), jnp.array([0, 3])[: len(x)]].sum()

    gradient = jax.jit(jax.grad(score))
    for number in (1, 2):
        got = gradient(jnp.ones((number, 8)), x[:number])
        want = x[:number].sum((1, 2)) * w.T[jnp.array([0, 3])[:number]]
        # Rounding stays far below this; the fault is most of the gradient.
        if float(jnp.abs(got - want).max()) > 1e-3:
            raise RuntimeError(
                f"jaxlib {jaxlib.version.__version__} computes wrong gradients on this CPU: "
                "import perturb before the first JAX computation, or set "
                f"XLA_FLAGS={FLAG} (or use jaxlib 0.12)"
            )
