"""Where a reconstruction runs: one interface, several backends."""
