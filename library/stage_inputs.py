"""Check that a stage's inputs do not change while it runs.

DVC hashes what a stage read only after it has run. Rows, code or parameters that were replaced
meanwhile would go into dvc.lock beside results of the old ones (treeverse/dvc#11058). Such a run
ends with an error, so that nothing is recorded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.errors import InputError
from library.files import hash_once, look_at
from library.params import flatten, read_yaml
from library.paths import EMBEDDING_PIPELINE_PATH, PARAMS_PATH, PIPELINE_PATH


@dataclass(frozen=True)
class _Seen:
    """A file's state that can be asked without reading it, and its SHA-256."""

    look: list[int]
    sha256: str


class StageInputs:
    """The inputs that dvc.yaml declares for a stage: files, and parameters by value."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        stages = read_yaml(PIPELINE_PATH).get("stages", {})
        if EMBEDDING_PIPELINE_PATH.is_file():
            stages |= read_yaml(EMBEDDING_PIPELINE_PATH).get("stages", {})
        declared = stages.get(stage, {})
        params = flatten(read_yaml(PARAMS_PATH))

        def resolve(text: str) -> str:
            return re.sub(
                r"\$\{([\w.]+)\}", lambda match: str(params.get(match[1], match[0])), text
            )

        self._paths = [Path(resolve(path)) for path in declared.get("deps", [])]
        for path in self._paths:
            maker = _find_maker(stages, path)
            if maker is not None and not path.exists():
                remedy = "make embed" if maker.startswith("embed_") else f"dvc repro {maker}"
                raise InputError(f"{path}: no such file or folder; run `{remedy}`")
        entries = declared.get("params", [])
        own = [entry for entry in entries if isinstance(entry, str)]
        self._params: dict[Path, list[str] | None] = {PARAMS_PATH: own}  # None: all of the file
        for entry in entries:
            if not isinstance(entry, str):
                self._params |= {Path(resolve(path)): names for path, names in entry.items()}
        self._files = {path: _see(path) for path in self._list_files()}
        self._values = self._read_values()

    def _list_files(self) -> list[Path]:
        found: list[Path] = []
        for path in self._paths:
            found += [file for file in path.rglob("*") if file.is_file()]
            found += [path] if path.is_file() else []
        return found

    def _read_values(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for path, names in self._params.items():
            if not path.is_file():  # the stage says more of it
                continue
            for key, value in flatten(read_yaml(path)).items():
                if names is None or any(
                    key == name or key.startswith(f"{name}.") for name in names
                ):
                    values[f"{path}: {key}"] = value
        return values

    def check_unchanged(self) -> None:
        """Raise InputError naming what has changed since this object was made."""
        files = set(self._list_files())
        changed = [str(path) for path in sorted(files ^ self._files.keys())]
        for path in sorted(files & self._files.keys()):
            seen = self._files[path]
            if look_at(path) != seen.look and hash_once(path) != seen.sha256:
                changed.append(str(path))
        values = self._read_values()
        names = sorted({*values, *self._values})
        changed += [name for name in names if values.get(name) != self._values.get(name)]
        if changed:
            again, name = "dvc repro", self.stage
            if name.startswith("embed_"):
                again, name = "make embed", f"embedding/dvc.yaml:{name}"
            raise InputError(
                f"{', '.join(changed)}: changed while {self.stage} ran, so its result belongs to "
                f"the old version and is not recorded. Run `{again}` again; or restore the old "
                f"version and record the result: dvc commit --force {name}"
            )


def _find_maker(stages: Mapping[str, Any], path: Path) -> str | None:
    """The stage that writes a path, or the folder that it is in."""
    for name, declared in stages.items():
        for key in ("outs", "metrics", "plots"):
            for entry in declared.get(key, []):
                out = Path(next(iter(entry)) if isinstance(entry, dict) else entry)
                if out == path or out in path.parents:
                    return str(name)
    return None


def _see(path: Path) -> _Seen:
    return _Seen(look_at(path), hash_once(path))
