"""Report what works here, what to know and what is broken, each problem with the command that fixes
it.

`make doctor`, or `python -m commands.doctor`. Exit status 1 if there is a problem. The checks are
independent: if one crashes, the others still run. It changes nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from commands.doctor import environment, machine, repository
from commands.doctor.finding import LEVELS, Finding
from library.errors import InputError

Check = Callable[[], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    environment.check_python,
    environment.check_packages,
    environment.check_variables,
    repository.check_git,
    repository.check_conflicts,
    repository.check_params,
    repository.check_dvc,
    repository.check_running,
    repository.check_tree,
    repository.check_pipeline,
    repository.check_outputs,
    repository.check_queue,
    repository.check_remote,
    repository.check_data,
    machine.check_gpu,
    machine.check_memory,
    machine.check_disk,
    machine.check_hub,
    machine.check_embedding,
)


def examine(checks: Iterable[Check]) -> Iterator[Finding]:
    """Yield the findings of every check. A check that crashes is a problem itself, unless reported
    before.
    """
    problems: list[str] = []
    for check in checks:
        name = check.__name__.removeprefix("check_")
        try:
            for finding in check():
                problems += [finding.text] if finding.level == "problem" else []
                yield finding
        except InputError as error:
            said = " ".join(str(error).split())
            if any(problem in said for problem in problems):
                yield Finding("note", name, "not checked until the parameters are fixed")
            else:
                yield Finding("problem", name, said)
        except Exception as error:  # noqa: BLE001 - whatever is broken here, the other checks still say theirs
            text = f"could not be checked: {type(error).__name__}: {' '.join(str(error).split())}"
            yield Finding("problem", name, text, "rm -f .venv/.ready && make environment")


def main() -> None:
    """Print a line for each finding, then the number of each kind."""
    counts: Counter[str] = Counter()
    missing = environment.find_missing_environment()
    if missing is not None:
        print(missing)
        sys.exit(1)
    for finding in examine(CHECKS):
        print(finding, flush=True)
        counts[finding.level] += 1
    print(", ".join(f"{counts[level]} {level}" for level in LEVELS))
    sys.exit(counts["problem"] > 0)


if __name__ == "__main__":
    main()
