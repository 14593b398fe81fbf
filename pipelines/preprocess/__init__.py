"""Whole frames made ready for reconstruction: whitening, readout cropping, coils."""
