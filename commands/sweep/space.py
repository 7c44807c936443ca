"""A space file: which parameters of params.yaml a sweep searches, in which ranges, in how many
trials.
"""

import itertools
import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, ValidationError, model_validator

from library.errors import InputError
from library.params import Count, Params, Section, Seed, load_model_file, read_values, validate
from library.paths import prompt_path
from library.validation import find_problems

log = logging.getLogger(__name__)

# other parameters would change the validation rows, or act after sft
SEARCHED = ("model", "format.", "sft.")
SIGNIFICANT_DIGITS = 3  # of floats, for readable commands


class Range(Section):
    @model_validator(mode="after")
    def _ascends(self) -> "Range":
        low, high = getattr(self, "low", 0), getattr(self, "high", 1)
        if low >= high:
            raise ValueError(f"low ({low}) must be below high ({high})")
        if getattr(self, "log", False) and low <= 0:
            raise ValueError(f"on a log scale low must be above 0, not {low}")
        return self


class FloatRange(Range):
    type: Literal["float"]
    low: float
    high: float
    log: bool


class IntRange(Range):
    type: Literal["int"]
    low: int
    high: int


class Choice(Section):
    type: Literal["choice"]
    values: Annotated[list[bool | int | float | str], Field(min_length=1)]

    @model_validator(mode="after")
    def _differ(self) -> "Choice":
        if len({repr(value) for value in self.values}) < len(self.values):
            raise ValueError("a value stands twice")
        return self


class Space(Section):
    trials: Count
    seed: Seed
    prune_after: Annotated[int, Field(ge=1)] | None
    parameters: Annotated[
        dict[str, Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]],
        Field(min_length=1),
    ]


def nest(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested params with dotted names set to new values.

    Raises KeyError for a name that params do not have.
    """
    changed = deepcopy(dict(params))
    for name, value in changes.items():
        *parents, key = name.split(".")
        section: Any = changed
        for parent in parents:
            section = section[parent]
        if not isinstance(section, dict) or key not in section or isinstance(section[key], dict):
            raise KeyError(name)
        section[key] = value
    return changed


def _check_value(params: Mapping[str, Any], name: str, value: Any) -> str | None:
    """Say what is wrong with a parameter's name or with one of its values; None if nothing is."""
    try:
        Params.model_validate(nest(params, {name: value}))
        if name == "model":
            load_model_file(str(value))
    except (KeyError, TypeError):
        return "unknown parameter"
    except ValidationError as error:
        return find_problems(error, Params)[0].describe()
    except InputError as error:
        return str(error).removeprefix("params.yaml: model: ")
    if name == "format.prompt" and not prompt_path(str(value)).is_file():
        return f"prompts/{value}.jinja does not exist"
    return None


def load_space(path: Path) -> Space:
    """Read and check a space file.

    Raises InputError naming file and key of all that is unknown, missing or out of range.
    """
    space = validate(Space, path)
    params = read_values()
    problems = []
    for name, searched in space.parameters.items():
        tried = searched.values if isinstance(searched, Choice) else [searched.low, searched.high]
        found = [
            problem for value in tried if (problem := _check_value(params, name, value)) is not None
        ]
        if not found and not name.startswith(SEARCHED):
            found = [
                "can't be searched: only model, format and sft leave the validation rows as they "
                "are and come before sft ends"
            ]
        problems += [f"{path}: parameters.{name}: {problem}" for problem in dict.fromkeys(found)]
    if problems:
        raise InputError("\n".join(problems))
    return space


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    made: dict[str, BaseDistribution] = {}
    for name, searched in space.parameters.items():
        if isinstance(searched, Choice):
            made[name] = CategoricalDistribution(searched.values)
        elif isinstance(searched, IntRange):
            made[name] = IntDistribution(searched.low, searched.high)
        else:
            made[name] = FloatDistribution(searched.low, searched.high, log=searched.log)
    return made


def list_grid(space: Space) -> list[dict[str, Any]] | None:
    """Every combination, the last parameter changing fastest; None if there are more than
    trials.
    """
    values = [
        searched.values if isinstance(searched, Choice) else range(searched.low, searched.high + 1)
        for searched in space.parameters.values()
        if not isinstance(searched, FloatRange)
    ]
    count = 1
    for part in values:
        count *= len(part)
    if len(values) < len(space.parameters) or count > space.trials:
        return None
    return [
        dict(zip(space.parameters, combination, strict=True))
        for combination in itertools.product(*values)
    ]


def round_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters as they are run and shown: floats rounded to three digits."""
    return {
        name: float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value
        for name, value in values.items()
    }


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Parameters as arguments of `dvc exp run`."""
    said = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in values.items()
    }
    return [part for name, value in said.items() for part in ("-S", f"{name}={value}")]
