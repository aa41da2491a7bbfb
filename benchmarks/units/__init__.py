"""Programs that make the figures of `docs/results/units.md`; each prints a table. Real data:
`PERTURB_DATA`.
"""
