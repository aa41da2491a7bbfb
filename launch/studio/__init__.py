"""A page to play with masks, generators and units, served to this machine alone."""
