"""What keeps numbers the same: exact sums, XLA's pitfalls, and work spread over devices."""
