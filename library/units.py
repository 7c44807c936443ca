"""Bytes in words."""

GIB = 2**30


def gib(size: float) -> str:
    """Bytes as text in GiB, or in MiB where that is more telling."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
