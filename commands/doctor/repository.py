"""Checks of git and DVC: the lock, the outputs, the queue, the remote, the data."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from commands.doctor.finding import Finding
from library.errors import InputError
from library.repository.client import failure_line, read_dvc, run, run_dvc, run_git

TRACKED_BY_EXPERIMENTS = (
    "params.yaml",
    "models",
    "dvc.lock",
    "metrics",
    "embedding/dvc.lock",
    "retrievers",
)
CONFLICT = re.compile(r"^(<<<<<<<|=======|>>>>>>>)( |$)", re.MULTILINE)
PEEKED_ROWS = 100

# the package that each kind of remote needs beside dvc
REMOTE_EXTRAS = {
    "s3": "dvc_s3",
    "gs": "dvc_gs",
    "ssh": "dvc_ssh",
    "azure": "dvc_azure",
    "gdrive": "dvc_gdrive",
    "hdfs": "dvc_hdfs",
}


def check_git() -> Iterator[Finding]:
    """Check that git is installed, that this is a repository, and that the user has a name and
    address.
    """
    try:
        version = run_git("--version").stdout.strip()
    except FileNotFoundError:
        yield Finding("problem", "git", "not found: experiments are git commits", "apt install git")
        return
    if run_git("rev-parse", "--is-inside-work-tree").returncode:
        yield Finding(
            "problem",
            "git",
            "this is no git repository",
            "git init && git add --all && git commit -m 'Begin'",
        )
        return
    if run_git("rev-parse", "--verify", "HEAD").returncode:
        yield Finding(
            "problem",
            "git",
            "no commit yet: dvc exp has nothing to start from",
            "git add --all && git commit -m Begin",
        )
    missing = [
        key for key in ("user.name", "user.email") if not run_git("config", key).stdout.strip()
    ]
    if missing:
        remedy = " && ".join(
            f"git config --global {key} {'YOU@EXAMPLE.COM' if key == 'user.email' else 'YOU'}"
            for key in missing
        )
        yield Finding(
            "problem", "git", f"{' and '.join(missing)} not set: nothing can be committed", remedy
        )
    else:
        yield Finding("ok", "git", version)


def find_conflicts() -> list[Path]:
    """Files that DVC reads and that contain conflict markers of a merge."""
    paths = (
        Path("dvc.lock"),
        Path("dvc.yaml"),
        Path("params.yaml"),
        *sorted(Path("metrics").glob("*.json")),
    )
    return [
        path
        for path in paths
        if path.is_file() and CONFLICT.search(path.read_text(encoding="utf-8", errors="replace"))
    ]


def check_conflicts() -> Iterator[Finding]:
    """Check for conflict markers of a merge.

    People resolve parameters; DVC makes lock and metrics again.
    """
    for path in find_conflicts():
        made = path.name == "dvc.lock" or path.parent.name == "metrics"
        remedy = (
            "git checkout --ours dvc.lock metrics && dvc repro && git commit --all"
            if made
            else f"edit {path}"
        )
        yield Finding("problem", str(path), "contains conflict markers of a merge", remedy)


def check_params() -> Iterator[Finding]:
    """Check params.yaml and the model's file: every key known, every value in range."""
    from library.params import load_model_file, load_params

    try:
        params = load_params()
        load_model_file(params.model)
    except InputError as error:
        text = str(error)
        faults = [" ".join(text.split())] if "not YAML" in text else text.splitlines()
        yield from (
            Finding("problem", "parameters", fault, "git diff params.yaml models")
            for fault in faults
        )
        return
    yield Finding("ok", "parameters", f"valid; model {params.model}, data {params.data.path}")


def _is_recomputed() -> bool:
    """Whether dvc.lock differs from HEAD's in results only."""
    from library.repository.lock import is_recomputed
    from library.repository.revisions import WORKSPACE, Revision

    with suppress(InputError):
        return is_recomputed(Revision("HEAD", Path()).stages, Revision(WORKSPACE, Path()).stages)
    return False


def check_tree() -> Iterator[Finding]:
    """Check for uncommitted changes by experiments.

    `dvc exp run` leaves the parameters that it set, and the next one starts from them.
    """
    changed = run(
        "git", "diff", "HEAD", "--name-only", "--", *TRACKED_BY_EXPERIMENTS
    ).stdout.split()
    if not changed:
        yield Finding("ok", "working tree", "parameters, lock and metrics as committed")
        return
    if "dvc.lock" in changed and "params.yaml" not in changed and _is_recomputed():
        yield Finding(
            "note",
            "working tree",
            "dvc.lock has other results than the commit's, from the same code, parameters and "
            "data: processors round differently",
            "to keep the commit's: git restore dvc.lock metrics && dvc checkout",
        )
        return
    if run_git("ls-files", "--unmerged").stdout:
        yield Finding(
            "note",
            "working tree",
            "a merge is in progress",
            "git status; to undo the merge: git merge --abort && dvc checkout",
        )
        return
    text = f"uncommitted: {', '.join(changed)}; the next dvc exp run starts from these"
    diff = run_dvc("params", "diff", "--json") if "params.yaml" in changed else None
    if diff is not None and diff.returncode == 0 and diff.stdout.strip():
        values = json.loads(diff.stdout).get("params.yaml", {})
        text += "".join(
            f"; {key} {value.get('old')} -> {value.get('new')}"
            for key, value in islice(values.items(), 5)
        )
    restored = [
        path
        for path in TRACKED_BY_EXPERIMENTS
        if any(name == path or name.startswith(f"{path}/") for name in changed)
    ]
    yield Finding("note", "working tree", text, f"git restore {' '.join(restored)} && dvc checkout")


def check_dvc() -> Iterator[Finding]:
    """Check that DVC works, is set up here, and is in git's hooks if useful."""
    if not Path(".dvc").is_dir():
        yield Finding("problem", "dvc", "not set up here", "dvc init")
        return
    version = run_dvc("--version")
    if version.returncode:
        yield Finding(
            "problem", "dvc", failure_line(version.stderr), "rm -f .venv/.ready && make environment"
        )
        return
    yield Finding("ok", "dvc", version.stdout.strip())
    yield from check_hooks()


def check_hooks() -> Iterator[Finding]:
    """Check DVC's git hooks: useful with a remote; without one they stop every push."""
    folder = Path(run_git("rev-parse", "--git-path", "hooks").stdout.strip())
    names = ("pre-commit", "pre-push", "post-checkout")
    present = [
        name
        for name in names
        if (folder / name).is_file() and "dvc git-hook" in (folder / name).read_text()
    ]
    has_remote = bool(read_remotes()[0])
    if "pre-push" in present and not has_remote:
        text = "DVC's hook pushes before git does, but there is no DVC remote: git push fails"
        yield Finding(
            "problem",
            "git hooks",
            text,
            f"rm {folder / 'pre-push'}, or: dvc remote add --default NAME URL",
        )
    elif len(present) < len(names) and has_remote:
        text = "without DVC: git checkout and git push do not move the outputs"
        yield Finding("note", "git hooks", text, "dvc install")


def check_running() -> Iterator[Finding]:
    """Check for another DVC at work here, and for what a killed one left: lock entries, a running
    stage.
    """
    import psutil

    if Path("checkpoints/sweep-workspace").is_dir():
        text = (
            "one is running here, or was killed: until it ends, params.yaml, dvc.lock and metrics "
            "belong to a trial"
        )
        yield Finding("note", "sweep", text, "wait, or resume: make sweep SPACE=sweeps/NAME.yaml")
    try:
        entries = json.loads(Path(".dvc/tmp/rwlock").read_text() or "{}")
        holders = [
            *entries.get("write", {}).values(),
            *(holder for held in entries.get("read", {}).values() for holder in held),
        ]
        commands = {int(holder["pid"]): str(holder["cmd"]) for holder in holders}
    except FileNotFoundError:
        commands = {}
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Finding(
            "problem",
            "dvc's lock",
            ".dvc/tmp/rwlock is broken: DVC was killed while it wrote it",
            "rm .dvc/tmp/rwlock",
        )
        return
    alive = [process for process in commands if psutil.pid_exists(process)]
    for process in alive:
        yield Finding(
            "note",
            "dvc's lock",
            f"process {process} is running: {commands[process]}",
            f"wait, or: kill {process}",
        )
    if alive:
        return
    if commands:
        text = f"left by a DVC that was killed: {next(iter(commands.values()))}"
        yield Finding("note", "dvc's lock", text, "rm .dvc/tmp/rwlock")
    for running in psutil.process_iter(["cmdline"]):
        words = running.info["cmdline"] or []
        with suppress(psutil.Error):
            if any(word.startswith("stages.") for word in words) and running.cwd() == str(
                Path.cwd()
            ):
                text = f"process {running.pid} runs without DVC: {' '.join(words[1:])}"
                yield Finding("note", "a stage", text, f"wait, or: kill {running.pid}")


def check_pipeline() -> Iterator[Finding]:
    """Check that dvc.lock is current: what `dvc repro` would run, missing outputs apart."""
    from library.repository.lock import dry_run

    if find_conflicts():
        return
    would_run = dry_run()
    # DVC stops at a missing output of a stage that would run, and says nothing about later stages
    if would_run.is_blocked:
        yield Finding("note", "pipeline", "cannot be checked while another DVC is running")
        return
    if would_run.failure is not None and not (would_run.stages and would_run.lacks_data):
        failure = would_run.failure.removeprefix("ERROR: ")
        # check_data says more about missing rows
        remedy = None if would_run.lacks_data else "dvc repro --dry --allow-missing"
        yield Finding("problem", "pipeline", failure, remedy)
        return
    if not Path("dvc.lock").is_file():
        yield Finding("note", "pipeline", "no dvc.lock: nothing has run yet", "make repro")
    elif would_run.stages:
        stages = ", ".join(would_run.stages)
        text = f"dvc.lock is older than code, data or parameters: at least {stages} would run"
        yield Finding("note", "pipeline", text, "dvc repro")
    else:
        yield Finding("ok", "pipeline", "dvc.lock is current")


def check_outputs() -> Iterator[Finding]:
    """Check that the outputs named in dvc.lock are here and unchanged."""
    if not Path("dvc.lock").is_file() or find_conflicts():
        return
    status = run_dvc("data", "status", "--json")
    if status.returncode:
        yield Finding("problem", "outputs", failure_line(status.stderr), "dvc data status")
        return
    found = json.loads(status.stdout or "{}")
    lost = found.get("not_in_cache", [])
    away = [path for path in found.get("uncommitted", {}).get("deleted", []) if path not in lost]
    modified = found.get("uncommitted", {}).get("modified", [])
    if lost:
        kept = all(Path(path).exists() for path in lost)
        text = (
            f"{len(lost)} are {'in place, but ' if kept else ''}not in the cache, such as {lost[0]}"
        )
        remedy = (
            "dvc commit"
            if kept
            else "dvc pull"
            if read_remotes()[0]
            else "dvc repro, or a remote: dvc pull"
        )
        yield Finding("note", "outputs", text, remedy)
    if away:
        text = f"{len(away)} are in the cache but not in place, such as {away[0]}"
        # a stage that was killed or failed has removed its outputs of before
        remedy = "dvc checkout; after a stage that failed or was killed: dvc repro"
        yield Finding("note", "outputs", text, remedy)
    if modified:
        text = f"{len(modified)} differ from dvc.lock, such as {modified[0]}"
        yield Finding("note", "outputs", text, "dvc repro; to restore them: dvc checkout --force")
    if not (lost or away or modified):
        yield Finding("ok", "outputs", "all in place")


def check_queue() -> Iterator[Finding]:
    """Check the queue for waiting, running and failed experiments, and for leftovers of killed
    ones.
    """
    if not Path(".dvc/tmp/exps/celery").is_dir():
        return
    tasks = [
        line.split()[-1].lower()
        for line in read_dvc("queue", "status").splitlines()
        if re.match(r"[0-9a-f]{7}\s", line)
    ]
    remedies = {
        "queued": "dvc queue start, or dvc queue remove --queued",
        "running": "dvc queue logs NAME, dvc queue stop --kill",
        "failed": "dvc queue logs NAME; dvc queue remove --failed",
    }
    for state, remedy in remedies.items():
        if state in tasks:
            yield Finding("note", "queue", f"{tasks.count(state)} {state}", remedy)
    left = [path for path in Path(".dvc/tmp/exps").glob("tmp*") if path.is_dir()]
    if left and "running" not in tasks:
        text = f"{len(left)} workspaces of killed runs in .dvc/tmp/exps"
        yield Finding("note", "queue", text, "dvc queue stop --kill; rm -r .dvc/tmp/exps/tmp*")
    if not tasks and not left:
        yield Finding("ok", "queue", "empty")


def read_remotes() -> tuple[dict[str, str], str | None]:
    """Addresses by remote, and the name of the default one.

    Reads `dvc config`, because `dvc remote list` breaks long lines.
    """
    values = dict(
        line.split("=", 1) for line in read_dvc("config", "--list").splitlines() if "=" in line
    )
    found = {
        match[1]: value
        for key, value in values.items()
        if (match := re.fullmatch(r"remote\.(.+)\.url", key))
    }
    return found, values.get("core.remote")


def check_remote() -> Iterator[Finding]:
    """Check where `dvc push` goes, and that the package for that kind of remote is installed."""
    remotes, default = read_remotes()
    if not remotes:
        yield Finding(
            "note",
            "remote",
            "none: outputs are only on this disk",
            "dvc remote add --default NAME URL",
        )
        return
    for name, url in remotes.items():
        kind = url.partition("://")[0] if "://" in url else ""
        extra = REMOTE_EXTRAS.get(kind)
        if extra is not None and importlib.util.find_spec(extra) is None:
            yield Finding(
                "problem",
                "remote",
                f"{name} is on {kind}, for which a package is missing",
                f"pip install {extra.replace('_', '-')}",
            )
        else:
            yield Finding("ok", "remote", f"{name}: {url}")
    if default is None:
        yield Finding(
            "note", "remote", "none is the default", f"dvc remote default {next(iter(remotes))}"
        )


def _explain_missing(path: Path) -> Finding:
    """Say that the rows are missing, and how to get them."""
    if Path(f"{path}.dvc").is_file():
        status = run_dvc("data", "status", "--json")
        lost = json.loads(status.stdout or "{}").get("not_in_cache", [])
        text = f"{path} is not here; DVC knows it, and "
        if path.as_posix() not in lost:
            return Finding("problem", "data", f"{text}has it in the cache", f"dvc checkout {path}")
        if read_remotes()[0]:
            return Finding("problem", "data", f"{text}it is not in the cache", f"dvc pull {path}")
        text += "has it neither in the cache nor in a remote"
        return Finding("problem", "data", text, f"cp YOUR_ROWS {path} && dvc add {path}")
    others = [other for other in path.parent.glob("*") if other.suffix not in (".dvc", ".md")]
    similar = get_close_matches(path.name, [other.name for other in others], 1)
    if similar:
        text = f"{path} is not here, {path.with_name(similar[0])} is"
        return Finding("problem", "data", text, "edit data.path in params.yaml")
    remedy = f"cp YOUR_ROWS {path} && dvc add {path}, or edit data.path in params.yaml"
    return Finding("problem", "data", f"{path} is not here", remedy)


def check_data() -> Iterator[Finding]:
    """Check the rows of `data.path`: present, with the columns, usable, and known to git or DVC."""
    from library.corpus.reading import find_file_shape, read_raw
    from library.corpus.rows import find_problem
    from library.params import load_params

    params = load_params()
    data = params.data
    path = Path(data.path)
    made = path.parts[:2] == ("data", "sample")
    if not path.is_file():
        if made:
            yield Finding("note", "data", f"{path} is not here yet", "dvc repro sample")
        else:
            yield _explain_missing(path)
        return
    try:
        shape = find_file_shape(path, data)
        rows = list(islice(read_raw(path, data), PEEKED_ROWS))
    except InputError as error:
        yield Finding("problem", "data", str(error), "see `data` in params.yaml")
        return
    problems = ((row, find_problem(row, shape, params.clean.nothing)) for row in rows)
    bad = [(row, problem) for row, problem in problems if problem is not None]
    text = f"{path}: {shape.describe()}; the first {len(rows)} rows have them"
    if bad:
        yield Finding(
            "note",
            "data",
            f"{text}; {len(bad)} cannot be used, such as {bad[0][0].place}: {bad[0][1]}",
            "dvc repro profile",
        )
    else:
        yield Finding("ok", "data", text)
    if (
        not made
        and not Path(f"{path}.dvc").is_file()
        and run_git("ls-files", "--error-unmatch", str(path)).returncode
    ):
        text = (
            f"{path} is known to neither git nor DVC: it is missing in queued runs and in other "
            "clones"
        )
        yield Finding(
            "note",
            "data",
            text,
            f"dvc add {path} && git add {path}.dvc {path.parent / '.gitignore'}",
        )
