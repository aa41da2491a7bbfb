"""What a mask can be, how its area is made exact, and how small scores become a mask of full
size.
"""

from perturb.masks.shapes import (
    Blobs,
    Grid,
    Mask,
    Narrowing,
    Parametrisation,
    Pixels,
    SmoothMax,
    binarise,
    course,
    exact_area,
    gaussian_upsample,
    smooth_max,
    upsample,
)

__all__ = [
    "Blobs",
    "Grid",
    "Mask",
    "Narrowing",
    "Parametrisation",
    "Pixels",
    "SmoothMax",
    "binarise",
    "course",
    "exact_area",
    "gaussian_upsample",
    "smooth_max",
    "upsample",
]
