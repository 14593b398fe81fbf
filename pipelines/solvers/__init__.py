"""Numerical solvers that take callables and know nothing of MRI."""
