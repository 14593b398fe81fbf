"""Which readout belongs where, and when a group is complete."""
