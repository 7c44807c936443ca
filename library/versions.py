"""The packages that a result depends on, by their installed versions. None is imported."""

from collections.abc import Sequence
from importlib.metadata import version

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")
EMBEDDING_PACKAGES = ("torch", "transformers", "sentence-transformers", "peft")


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Version by package, in the order in which they are reported."""
    return {name: version(name) for name in packages}
