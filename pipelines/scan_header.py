"""Stub replaced by the assembly part."""


class ScanHeader:
    """Placeholder."""
