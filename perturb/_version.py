"""The version, where packaging and `perturb.__version__` both read it."""

__version__ = "0.1.0"
