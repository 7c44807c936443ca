"""Write a comment on what a branch changed: python -m commands.pull_request --base main

Compares HEAD with its merge base: metrics and parameters from git (`dvc metrics diff`, `dvc params
diff`), rows and answers from the DVC cache if it has them; embedding models too, if the branch
touched them. Writes reports/pull_request.md and prints it. It is not a stage of dvc.yaml, because
it compares commits.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from library.entry import run_main
from library.errors import InputError
from library.files import write_text
from library.pages.comment import (
    alert,
    code,
    listed,
    render_comment,
    render_counts,
    render_curves,
    render_effect,
    render_examples,
    render_inputs,
    render_rejects,
    render_retrieval,
    tuned_statement,
    warn_of_seeds,
)
from library.pages.embedding_statements import TASKS, bm25_statement, tuning_statement
from library.pages.statements import (
    result_statements,
    room_statement,
    seeds_command,
    split_statement,
    system_name,
)
from library.params import Params, load_params
from library.paths import (
    BASE_DIR,
    CLEAN_ROWS_PATH,
    EMBEDDING_LOCK_PATH,
    EMBEDDING_MODELS_DIR,
    EMBEDDING_PATH,
    EMBEDDING_PIPELINE_PATH,
    EVALUATION_PATH,
    HISTORY_PATH,
    PARAMS_PATH,
    SCORES_PATH,
    SPLITS_PATH,
    TEST_PATH,
    predictions_path,
    rankings_path,
)
from library.records import SFT, SPLITS, SYSTEMS, ZEROSHOT, ScoredRow
from library.repository.client import find_cache_dir, read_dvc_json, read_git
from library.repository.lock import find_changes, find_stale, is_recomputed
from library.repository.revisions import WORKSPACE, Revision, find_commits
from library.verdict.retrieval import BM25
from library.verdict.scoring import compare_runs

COMMENT_PATH = Path("reports/pull_request.md")
TEST, SCORES, EVALUATION, HISTORY, BASE_MODEL, EMBEDDING, CLEAN_ROWS = (
    path.as_posix()
    for path in (
        *(TEST_PATH, SCORES_PATH, EVALUATION_PATH, HISTORY_PATH, BASE_DIR),
        *(EMBEDDING_PATH, CLEAN_ROWS_PATH),
    )
)
PREDICTIONS = {system: predictions_path(system).as_posix() for system in SYSTEMS}
REJECTED = ("data/clean/rejected.jsonl", "data/formatted/rejected.jsonl")
HOW_IT_IS_SCORED = "library/verdict/metrics.py"

Row = Mapping[str, Any]


def compare_inputs(head: Revision, base: Revision) -> dict[str, str]:
    """The pipeline's input files that differ, by path, with how they differ."""
    here, there = head.inputs, base.inputs
    changed = {}
    for path in sorted(here.keys() | there.keys()):
        if path not in there:
            changed[path] = "read here only"
        elif path not in here:
            changed[path] = "read on the base only"
        elif here[path] != there[path]:
            changed[path] = "changed"
    return changed


def rows_by_id(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows by their id."""
    return {str(row["id"]): row for row in rows}


def question_and_answers(row: Row) -> tuple[Any, ...]:
    """The question and answers of a test row, without its prompt."""
    return tuple(row[name] for name in ("question", "positive", "negative"))


def compare_rows(before: Sequence[Row], after: Sequence[Row]) -> tuple[bool, str]:
    """Whether base and head have the same test questions and answers, and a sentence on it."""
    old, new = rows_by_id(before), rows_by_id(after)
    common = old.keys() & new.keys()
    edited = sum(question_and_answers(old[key]) != question_and_answers(new[key]) for key in common)
    added, gone = len(new.keys() - common), len(old.keys() - common)
    if added or gone or edited:
        return False, (
            f"The test rows changed: {added} new, {gone} gone, {edited} with another text, "
            f"{len(common) - edited} as before."
        )
    return (
        True,
        f"The {len(new)} test rows and their references are the same, but their prompts differ.",
    )


def compare_tests(head: Revision, base: Revision, zeroshot_moved: bool) -> str:
    """A box that says why the numbers of both sides cannot be compared; empty if they can.

    `zeroshot_moved`: whether a zero-shot metric differs. Answers that were only computed again are
    no news.
    """
    zeroshot = PREDICTIONS[ZEROSHOT]
    differ = {path for path in (TEST, zeroshot, BASE_MODEL) if head.hash(path) != base.hash(path)}
    if not differ:
        return ""
    if differ == {zeroshot} and not zeroshot_moved:
        return alert(
            "NOTE", "The zero-shot answers were computed again; their metrics are the same."
        )
    alike, said = True, ["The test rows are the same."]
    if TEST in differ:
        before, after = base.rows(TEST), head.rows(TEST)
        if before is None or after is None:
            alike, said = (
                False,
                [
                    "The test rows or their prompts changed; the rows that would tell which are "
                    "not in the cache (see below)."
                ],
            )
        else:
            alike, sentence = compare_rows(before, after)
            said = [sentence]
    if BASE_MODEL in differ:
        said.append("The base model changed.")
    if zeroshot in differ:
        said.append("The zero-shot answers changed.")
    said.append(
        "The gains start from different zero-shot results: compare fine-tuned with fine-tuned, not "
        "gain with gain."
        if alike
        else "The numbers here and on the base cannot be compared: a difference may come from the "
        "rows alone."
    )
    return alert("WARNING", f"**Not the same test as on the base.** {' '.join(said)}")


def compare_rejects(head: Revision, base: Revision) -> tuple[dict[str, list[Row]], bool]:
    """Rows rejected on one side only, and whether the cache had every file needed.

    A row is known by its id or, without one, by its place in the file. If a place occurs n times,
    it counts n times.
    """
    found: dict[str, list[Row]] = {
        "rejected here, not on the base": [],
        "rejected on the base, not here": [],
    }
    complete = True
    for path in REJECTED:
        folder = str(Path(path).parent)
        if head.outs.get(folder) == base.outs.get(folder):
            continue
        here, there = head.rows(path), base.rows(path)
        if here is None or there is None:
            complete = False
            continue
        new, old = number_rejects(here), number_rejects(there)
        for said, records, others in zip(found, (new, old), (old, new), strict=True):
            found[said] += [record for key, record in records.items() if key not in others]
    return found, complete


def number_rejects(records: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """Rejected rows by id or place, and a count that tells equal ones apart."""
    seen: Counter[str] = Counter()
    numbered = {}
    for record in records:
        key = str(record.get("id", record.get("place")))
        numbered[key, seen[key]] = record
        seen[key] += 1
    return numbered


def read_curves(revision: Revision) -> dict[str, list[tuple[int, float]]]:
    """The logged losses by step, by name; empty if the cache does not have them."""
    path = revision.data(HISTORY)
    if path is None:
        return {}
    history = pd.read_csv(path)
    curves = {
        name: history[["step", name]].dropna() for name in ("loss", "eval_loss") if name in history
    }
    return {
        name: [(int(step), float(loss)) for step, loss in part.to_numpy()]
        for name, part in curves.items()
        if len(part)
    }


def read_answers(revision: Revision, system: str) -> dict[str, str] | None:
    """A system's answers by row id."""
    records = revision.rows(PREDICTIONS[system])
    if records is None:
        return None
    return {str(record["id"]): str(record["prediction"]) for record in records}


def read_scores(revision: Revision) -> dict[str, ScoredRow] | None:
    """The scored test rows by id."""
    records = revision.rows(SCORES)
    if records is None:
        return None
    return {str(record["id"]): ScoredRow.from_record(record) for record in records}


def show_wins(head: Revision, primary: str) -> str | None:
    """The rows that gained and lost most by fine-tuning; None if the cache does not have them."""
    scored, test = read_scores(head), head.rows(TEST)
    answers = {}
    for system in SYSTEMS:
        if (given := read_answers(head, system)) is not None:
            answers[system] = given
    if scored is None or test is None or len(answers) < len(SYSTEMS):
        return None
    rows = list(scored.values())
    summary = "Fine-tuned against zero-shot"
    names = {system: system_name(system) for system in SYSTEMS}
    return render_examples(rows, rows_by_id(test), answers, names, primary, summary)


def count_seeds(head: Revision, base: Revision) -> tuple[int, int]:
    """With how many seeds the fine-tuned models of base and head were trained."""
    before, after = (side.metrics(EVALUATION).get("training_seeds", 1) for side in (base, head))
    return int(before), int(after)


def compare_tuned(head: Revision, base: Revision, params: Params) -> tuple[str, str] | None:
    """Compare the fine-tuned answers of both sides on the test rows that both have.

    Returns what it says, with what it leaves out, and examples; None if the cache does not have
    them.
    """
    tests = base.rows(TEST), head.rows(TEST)
    scores = read_scores(base), read_scores(head)
    given = read_answers(base, SFT), read_answers(head, SFT)
    if None in tests or None in scores or None in given:
        return None
    before, after = (rows_by_id(rows or []) for rows in tests)
    old, new = (rows or {} for rows in scores)
    same = [
        key
        for key, row in after.items()
        if key in before and question_and_answers(before[key]) == question_and_answers(row)
    ]
    primary, confidence = params.evaluate.primary, params.evaluate.confidence
    comparisons = compare_runs(
        {key: old[key] for key in same}, {key: new[key] for key in same}, [primary], params.evaluate
    )
    if primary not in comparisons:
        return (
            "No test row is the same on both sides, so the fine-tuned answers cannot be compared.",
            "",
        )
    seeds = count_seeds(head, base)
    sentence = str(tuned_statement(comparisons[primary], seeds, primary, confidence))
    if head.inputs.get(HOW_IT_IS_SCORED) != base.inputs.get(HOW_IT_IS_SCORED):
        sentence += (
            f" `{HOW_IT_IS_SCORED}` changed between the two, so part of this may come from the "
            "scoring."
        )
    answers = {"base": given[0] or {}, "head": given[1] or {}}
    names = {"base": "base", "head": "here"}
    # the answers are those of the first seed
    scored = [
        ScoredRow(
            key,
            new[key].group,
            None,
            {"base": old[key].systems[SFT], "head": new[key].systems[SFT]},
        )
        for key in same
    ]
    summary = f"Fine-tuned{', first seed' * (max(seeds) > 1)}, here against the base"
    if warning := warn_of_seeds(seeds, seeds_command([params.sft.seed])):
        sentence += f"\n\n{warning}"
    return sentence, render_examples(scored, after, answers, names, primary, summary)


def warn_of_state(head: Revision, stale: Mapping[str, Sequence[str]]) -> list[str]:
    """Boxes that say why the numbers may not belong to this commit: uncommitted changes, an old
    dvc.lock.

    `stale` names the stages that would run again, and why.
    """
    boxes = []
    dirty = read_git("status", "--porcelain", "--untracked-files=no").splitlines()
    if any(line[3:] == "dvc.lock" for line in dirty) and is_recomputed(
        head.stages, Revision(WORKSPACE, head.cache_dir).stages
    ):
        boxes.append(
            alert(
                "NOTE",
                "**Computed again here, and not in this comment:** from the same code, parameters "
                "and data, dvc.lock has other results than the commit's, because processors round "
                "differently. To keep the commit's: `git restore dvc.lock metrics && dvc checkout`",
            )
        )
        dirty = [line for line in dirty if not line[3:].startswith(("dvc.lock", "metrics/"))]
    if dirty:
        boxes.append(
            alert(
                "WARNING",
                "**Not committed, and not in this comment:** "
                f"{listed([line[3:] for line in dirty])}",
            )
        )
    if stale:
        boxes.append(warn_of_stale("dvc.lock", "dvc repro", stale))
    return boxes


def warn_of_stale(lock: str, command: str, stale: Mapping[str, Sequence[str]]) -> str:
    """A box that says a lock is out of date; `stale` gives the reasons by stage."""
    reasons = "; ".join(f"{code(stage)}: {listed(why)}" for stage, why in stale.items())
    return alert(
        "CAUTION",
        f"**{lock} is not current.** `{command}` would run stages again ({reasons}), so the "
        "numbers here may not belong to this commit. Run it, and commit "
        f"{lock} and metrics/ with the change.",
    )


def show_loss(head: Revision, base: Revision) -> list[str]:
    """The loss curves, beside those of the base if they differ; empty if the cache has none."""
    here, there = read_curves(head), read_curves(base)
    if not here:
        return []
    if head.hash(HISTORY) == base.hash(HISTORY):
        return [render_curves(here), "The same as on the base."]
    return (
        ["Here:", render_curves(here), "On the base:", render_curves(there)]
        if there
        else [render_curves(here)]
    )


def take_embedding(
    changed_params: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Split off the changed parameters that only `make embed` reads."""
    taken: dict[str, dict[str, Any]] = {}
    for path in list(changed_params):
        changes = changed_params[path]
        if path.startswith(f"{EMBEDDING_MODELS_DIR.as_posix()}/"):
            taken[path] = changed_params.pop(path)
        elif path == PARAMS_PATH.as_posix():
            found = {name: changes.pop(name) for name in list(changes) if is_of_embed(name)}
            taken |= {path: found} if found else {}
            if not changes:
                del changed_params[path]
    return taken


def is_of_embed(name: str) -> bool:
    """Whether a parameter of params.yaml is in its section `embed`."""
    return name.split(".")[0] == "embed"


def describe_embedding(
    head: Revision, base: Revision, changed_params: Mapping[str, Mapping[str, Any]], params: Params
) -> list[str]:
    """The section on the embedding model; empty if the branch did not touch that pipeline."""
    here, there = head.embedding, base.embedding
    moved = here.stages != there.stages or head.text(EMBEDDING) != base.text(EMBEDDING)
    if not moved and not changed_params:
        return []
    primary = here.locked_params.get("embed.primary", params.embed.primary)
    after, before = here.embedding_metrics(primary), there.metrics(EMBEDDING)

    said = []
    stale = find_changes(EMBEDDING_PIPELINE_PATH) if EMBEDDING_PIPELINE_PATH.exists() else {}
    rows = {head.hash(CLEAN_ROWS), here.hash(CLEAN_ROWS)} - {None}
    if len(rows) > 1:
        stale.setdefault("embed_zeroshot", [CLEAN_ROWS])
    if stale:
        said.append(warn_of_stale(EMBEDDING_LOCK_PATH.as_posix(), "make embed", stale))
    if not before:
        said.append(alert("WARNING", "**The base has no embedding result to compare with.**"))
    elif after and not same_search(here, there):
        what = (
            "**Not the same test as on the base.** The test rows, or the texts that are searched, "
            "changed"
            if there.stages
            else f"**The base has no {EMBEDDING_LOCK_PATH.as_posix()}.** Whether the test rows are "
            "the same is not known"
        )
        said.append(alert("WARNING", f"{what}: a difference may come from them alone."))
    asked = there.locked_params.get("embed.primary", primary)
    if before and asked != primary:
        said.append(f"The verdict is about {TASKS[primary].title}, on the base {asked}.")
    if after:
        said.append(str(tuning_statement(after, primary, params.evaluate.confidence)))
        said.append(str(bm25_statement(after, primary)))
    else:
        said.append(
            "**No result here**: run `make embed`, and commit embedding/dvc.lock and metrics/."
        )
    said.append(render_retrieval(after, before, primary))
    said.append("Base → here, each on its own test rows. What changed:")
    said.append(render_inputs(changed_params, compare_inputs(here, there) if there.stages else {}))
    return said


def same_search(here: Revision, there: Revision) -> bool:
    """Whether both sides searched the same texts with the same questions.

    BM25 uses no model, so its result tells.
    """
    paths = (CLEAN_ROWS, rankings_path(BM25).as_posix())
    return all(here.hash(path) == there.hash(path) for path in paths)


def describe(head: Revision, base: Revision, base_name: str, params: Params) -> str:
    """The whole comment. Raises InputError if HEAD has no result."""
    primary = params.evaluate.primary
    after, before = head.metrics(EVALUATION), base.metrics(EVALUATION)
    if primary not in after:
        raise InputError(
            f"{EVALUATION} in {head}: no result by {primary}; run `dvc repro` and commit metrics/ "
            "and dvc.lock"
        )
    metrics = read_dvc_json("metrics", "diff", "--json", base.commit, head.commit)
    changed_params = read_dvc_json("params", "diff", "--json", base.commit, head.commit)
    embedding = describe_embedding(head, base, take_embedding(changed_params), params)
    if embedding:
        metrics.pop(EMBEDDING, None)
    judged = metrics.get(EVALUATION, {})
    files = compare_inputs(head, base)

    stale = find_stale() or {}
    top = warn_of_state(head, stale)
    if before:
        moved = any(name.endswith(f".{ZEROSHOT}") for name in judged)
        top.append(compare_tests(head, base, moved))
    else:
        top.append(alert("WARNING", "**The base has no result to compare with.**"))
    if before and is_recomputed(base.stages, head.stages):
        top.append(
            alert(
                "NOTE",
                "**Computed again from the base's code, parameters and data.** Only rounding "
                "differs between processors.",
            )
        )
    if not metrics and not changed_params and not stale and head.stages == base.stages:
        pipeline = "language model's pipeline" if embedding else "pipeline"
        top.append(
            f"**Nothing changed that the {pipeline} reads or measures**: the result is that of the "
            "base."
        )
    splits = head.metrics(SPLITS_PATH.as_posix())
    if splits:
        warnings = (
            split_statement({name: splits[name] for name in SPLITS}),
            room_statement(splits["test"], params.format),
        )
        top += [alert("WARNING", str(said)) for said in warnings if said is not None]
    top += map(str, result_statements(after, primary, params.evaluate.confidence))

    wins, loss = show_wins(head, primary), show_loss(head, base)
    tuned: tuple[str, str] | None = ("", "")
    if before and head.hash(SCORES) != base.hash(SCORES):
        tuned = compare_tuned(head, base, params)
    tuned_sentence, tuned_examples = tuned or ("", "")
    rejected, complete = compare_rejects(head, base)
    missing = {
        "examples": wins is None,
        "the fine-tuned answers of both sides, row by row": tuned is None,
        "which rows are rejected": not complete,
        "the loss curve": not loss,
    }
    absent = [what for what, is_missing in missing.items() if is_missing]
    sections: list[tuple[str, list[str]]] = [("", top)]
    if metrics or changed_params or files:
        effect = ["No metric changed."]
        if judged:
            effect = [render_effect(after, before, judged, primary)]
        effect.append(tuned_sentence)
        if number := sum(map(len, metrics.values())):
            numbers = f"{number} number{'s' * (number != 1)}"
            effect.append(f"{numbers} changed in all: `dvc metrics diff {base} {head}`")
        sections += [
            ("What was changed", [render_inputs(changed_params, files)]),
            ("What that did", effect),
            ("Rows", [render_counts(metrics), render_rejects(rejected)]),
        ]
    sections += [("Loss", loss), ("Embedding model", embedding)]
    if absent:
        sections.append(("Not in the cache", [describe_missing(absent, base)]))
    sections.append(("Reproduce it", [commands_to_reproduce(head)]))
    headline = (
        f"Does fine-tuning help? {code(str(head))} against {code(str(base))} of {code(base_name)}"
    )
    return render_comment(headline, sections, [wins or "", tuned_examples])


def describe_missing(missing: Sequence[str], base: Revision) -> str:
    """Say what is left out because its data is missing, and where to get it."""
    return (
        f"Therefore missing here: {', '.join(missing)}. `dvc pull` gets the data of this commit "
        f"from a remote, `git switch --detach {base.commit[:7]} && dvc fetch` that of the base."
    )


def commands_to_reproduce(head: Revision) -> str:
    """The commands that reproduce this result."""
    return (
        f"```sh\ngit fetch origin {head.commit} && git switch --detach {head.commit}\n"
        "dvc pull    # gets the outputs, if a remote has them\n"
        "make repro  # computes what is missing\n```"
    )


def main() -> None:
    """Compare the commits, write the comment and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.pull_request", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--base",
        default="main",
        help="the branch or commit that the pull request goes to (default: main)",
    )
    base_name = parser.parse_args().base
    head, base = find_commits(base_name)
    cache_dir = find_cache_dir()
    comment = describe(
        Revision(head, cache_dir), Revision(base, cache_dir), base_name, load_params()
    )
    write_text(COMMENT_PATH, comment)
    print(comment)


if __name__ == "__main__":
    run_main(main)
