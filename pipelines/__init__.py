"""MR physics and reconstruction: from raw readouts to images with uncertainty."""
