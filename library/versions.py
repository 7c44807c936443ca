"""The installed versions of the packages that a result depends on. None is imported."""

from collections.abc import Sequence
from importlib.metadata import version

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")
EMBEDDING_PACKAGES = ("torch", "transformers", "sentence-transformers", "peft")


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The version of each package, in the order of the report."""
    return {name: version(name) for name in packages}
