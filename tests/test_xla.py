"""The guard against wrong gradients, in processes of their own: XLA reads its flags once."""

import os
import subprocess
import sys

import jaxlib
import pytest

MODEL = """
import jax, jax.numpy as jnp
{first}
import perturb
model = perturb.Model(lambda w, x: x.mean((1, 2)) @ w, jnp.eye(3))
perturb.check_model(model, jnp.full((2, 8, 8, 3), 0.5))
print("right")
"""
# The versions whose CPU gradients were found wrong; others need no guard.
WRONG = jaxlib.__version__.startswith(("0.10.", "0.11."))


def run(first, flags=""):
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = MODEL.format(first=first)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_importing_the_library_makes_gradients_right():
    assert run("").stdout == "right\n"


@pytest.mark.slow
@pytest.mark.skipif(not WRONG, reason="this jaxlib needs no guard")
def test_a_process_that_computed_before_is_refused_unless_it_set_the_flag():
    # XLA has started, and reads no flag that the import sets now.
    late = run("jnp.ones(3).sum()")
    assert "computes wrong gradients on this CPU" in late.stderr
    told = run("jnp.ones(3).sum()", "--xla_cpu_experimental_ynn_fusion_type=")
    assert told.stdout == "right\n"
