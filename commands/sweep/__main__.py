"""Search parameters by validation loss: python -m commands.sweep sweeps/learning_rate.yaml

Each trial is a DVC experiment that ends with `sft` and never uses test rows. The study is kept in
checkpoints/, so that it can be killed and resumed: finished trials stay, and the running one is run
again with the same parameters.
"""

import argparse
import logging
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from optuna.trial import TrialState

from commands.sweep.space import load_space, overrides
from commands.sweep.study import (
    finished,
    format_values,
    identify,
    open_study,
    render_study,
    requeue_killed,
    work_on,
)
from library.entry import run_main
from library.errors import InputError
from library.pages.statements import seeds_command
from library.params import load_params
from library.repository.workspace import borrow_workspace, recover_workspace

log = logging.getLogger(__name__)


def main() -> None:
    """Run the study until it has all its trials, then print what it selected."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.sweep", description=__doc__.split(":")[0]
    )
    parser.add_argument("space", type=Path, help="sweeps/NAME.yaml")
    parser.add_argument(
        "--finish",
        action="store_true",
        help="then run the whole pipeline with the selected parameters",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    recover_workspace()
    space = load_space(arguments.space)
    # a name of letters and digits, as DVC wants its experiments'
    study, folder = open_study(
        space,
        identify(space),
        re.sub(r"[^A-Za-z0-9_-]+", "-", arguments.space.stem).strip("-") or "sweep",
    )
    requeue_killed(study)
    if len(finished(study)):
        log.info("%d of %d trials are done, in %s", len(finished(study)), space.trials, folder)
    try:
        if len(finished(study)) < space.trials:
            with borrow_workspace(list(space.parameters)):
                work_on(study, folder, space)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")
    print(f"\n{render_study(study)}\n")
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise InputError(f"no trial reached a validation loss; {folder} has the log of each")
    values = study.best_trial.user_attrs["parameters"]
    command = ["dvc", "exp", "run", *overrides(values)]
    came = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    print(
        f"Lowest validation loss of the {came} finished trials, {study.best_value:.4f}: "
        f"{format_values(values)}"
    )
    print("No trial used the test rows. Run the whole pipeline with these parameters:")
    print(f"\n    {shlex.join(command)}\n")
    seeds = {load_params().sft.seed, values.get("sft.seed")}
    # params.yaml's values first: dvc exp run leaves its own there
    print(
        "Each trial was trained with one seed, and another may order them differently. To compare "
        "the values in params.yaml with the selected ones over training seeds, run these instead, "
        "then make compare:"
    )
    print(f"\n    {seeds_command(seeds)}\n    {seeds_command(seeds, overrides(values))}\n")
    if arguments.finish:
        sys.exit(subprocess.run([sys.executable, "-m", *command], check=False).returncode)


if __name__ == "__main__":
    run_main(main)
