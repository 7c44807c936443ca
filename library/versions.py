"""The packages that a result depends on, by their installed versions. None is imported."""

from importlib.metadata import version

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")


def package_versions() -> dict[str, str]:
    """Version by package, in the order in which they are reported."""
    return {name: version(name) for name in PACKAGES}
