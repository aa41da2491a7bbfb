"""The documented import path of `perturb.units.doses`."""

from perturb.units.doses import Dose, discoveries, dose_response

__all__ = ["Dose", "discoveries", "dose_response"]
