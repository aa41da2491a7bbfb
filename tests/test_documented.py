"""The docstrings say of every parameter what to pass; `python -m tests.documented` lists the
rest.
"""

import types

import pytest

pytest.importorskip("griffe", reason="griffe reads docstrings: pip install 'griffe>=1'")

from tests import documented


@pytest.mark.parametrize("library", documented.LIBRARIES)
def test_parameters_are_documented_with_shape_range_or_type(library):
    lacking, total = documented.missing(library)
    assert total > 300
    assert len(lacking) <= 0.05 * total, f"{len(lacking)} of {total} lack one: {lacking[:20]}"


def test_what_is_not_documented_is_noticed():
    def function(images, area, key, *, size=3, order=1):
        """Returns something.

        Args:
          images: `[B, H, W, C]` in [0, 1].      area: share in (0, 1).
          key: of it.
          size, order: numbers.
        """

    module = types.SimpleNamespace(__all__=["function"], function=function, __name__="module")
    (path, found), *_ = documented.public(module)
    known = documented.described(found)
    lacking = [
        n for n in documented.parameters(found) if not documented.KIND.search(known.get(n, ""))
    ]
    # Two entries on one line are one entry to the parser; "of it" does not say what to pass.
    assert (path, lacking) == ("module.function", ["area", "key"])
