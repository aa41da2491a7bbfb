"""Programs that make the figures of the documentation: minutes to hours each, and not in the
wheel.
"""
