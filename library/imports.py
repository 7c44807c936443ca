"""Which of the project's modules a module imports, and which of these compute results.

A stage runs again if code that computes its output has changed, so those modules are its deps in
dvc.yaml and part of its resume key. The modules in packages of `library` and in `standin` compute,
and so does the stage itself. Modules directly in `library` do not: file I/O, parameter models
(parameters are tracked by their values), paths, types. An edit there leaves every result as it is,
or makes the stage fail.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("stages", "commands", "library", "standin")


def imported_modules(entry: Path, root: Path = ROOT) -> set[Path]:
    """The project's modules that a module imports at any depth, itself included.

    Paths are relative to `root`. Imports within functions count. Those of a package's `__init__` do
    not, since it has only a docstring and settings of libraries.
    """
    found: set[Path] = set()
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
            waiting += [file for name in _names(node) if (file := _file(name, root)) is not None]
    return found


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _file(name: str, root: Path) -> Path | None:
    path = Path(*name.split(".")).with_suffix(".py")
    return path if name.split(".")[0] in PACKAGES and (root / path).is_file() else None


def computes(path: Path) -> bool:
    """Whether results depend on a module: on all except those directly in `library`."""
    return path.parent != Path("library")


def computing_modules(stage: str, root: Path = ROOT) -> list[Path]:
    """The modules that a stage's outputs depend on, sorted."""
    return sorted(filter(computes, imported_modules(Path("stages") / f"{stage}.py", root)))
