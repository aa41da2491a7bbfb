"""Figures of feature visualisation and inversion: each program prints a table of the page."""
