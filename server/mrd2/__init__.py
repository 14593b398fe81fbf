"""MRD version 2: its headers, readouts and images as those of version 1 and back, through the package `mrd-python`."""
