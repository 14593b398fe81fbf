"""The reconstructions, each the short text that joins operators and a solver."""
