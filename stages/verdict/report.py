"""The report: what is said of the numbers, as Markdown for terminals and pull requests and as a page."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe
import pandas as pd
from markupsafe import Markup
from rapidfuzz.distance import LCSseq

from stages.verdict.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, METRICS, find_tokens
from stages.verdict.pages import render_page

SHOWN_CHARACTERS = 600
ROWS_SHOWN = 5

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")  # whose versions are reported; none is imported
TITLES = {
    "rouge_l": "ROUGE-L",
    "chrf": "chrF++",
    "token_f1": "token F1",
    "embedding_cosine": "embedding cosine",
    "bits_per_byte": "bits per byte of the reference (lower is better)",
    "pair_matching": "pair matching: the question decides",
    "contrastive": "contrastive: the context decides",
    "contrastive_no_question": "contrastive without the question: what the passages alone tell",
    "answer_only": "bare answers: a control, per byte",
    "naive_preference": "likelier per byte: the naive comparison, which style moves",
    "ngram_support": "three-word sequences found in the context",
    "number_support": "numbers found in the context",
    "copied_span": "longest run copied from the context, in words",
    "length_ratio": "length, for each character of the reference",
    "repetition": "four-word sequences that repeat (lower is better)",
    "truncated": "answers cut off at max_new_tokens (lower is better)",
    "empty": "empty answers (lower is better)",
}
BASELINES = {
    "no_context": "zero-shot, asked without the passages",
    "best_passage": "the best passage, copied",
    "longer": "the longer answer wins",
    "gold": "the reference itself",
}


def title(metric: str) -> str:
    """A metric's name alone, without what is said of it."""
    return TITLES[metric].split(" (")[0].split(":")[0]


def escape(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """Text from data on one line, so that Markdown and HTML take nothing in it for their own, shortened to `characters`."""
    line = " ".join(text.split())
    if len(line) > characters:
        line = line[:characters] + " …"
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", html.escape(line, quote=False))


def mark_common(text: str, other: str) -> Markup:
    """A text, escaped, with those words marked that it shares with the other in the same order (as ROUGE-L counts them)."""
    places, words = find_tokens(text), [word for _, _, word in find_tokens(other)]
    made, end = [Markup()], 0
    for operation in LCSseq.opcodes([word for _, _, word in places], words):
        if operation.tag == "equal" and operation.src_start < operation.src_end:
            start, stop = places[operation.src_start][0], places[operation.src_end - 1][1]
            made += [markupsafe.escape(text[end:start]), Markup("<mark>"), markupsafe.escape(text[start:stop]), Markup("</mark>")]
            end = stop
    return Markup().join([*made, markupsafe.escape(text[end:])])


def said_p(p: float) -> str:
    """A p-value as it is written in a sentence."""
    return "p < 0.0001" if p < 0.00005 else f"p = {p:.4f}"


def said_interval(result: Mapping[str, Any], digits: int = 3) -> str:
    """The interval of a change, or that there is none."""
    return f"{result['low']:+.{digits}f} to {result['high']:+.{digits}f}" if "low" in result else "none, of a single group"


def verdict_words(verdict: int, primary: str) -> str:
    """What a better, worse or undecided primary metric means: likeness, likelihood or telling right from wrong, and no more."""
    if primary in ("pair_matching", "contrastive"):
        words = {1: "The fine-tuned model tells right from wrong better", -1: "The fine-tuned model tells right from wrong worse"}
        return words.get(verdict, "There is no evidence that fine-tuning changed how well right is told from wrong")
    if primary == "bits_per_byte":
        words = {
            1: "The fine-tuned model finds the references likelier",
            -1: "The fine-tuned model finds the references less likely",
        }
        return words.get(verdict, "There is no evidence that fine-tuning changed how likely the references are")
    words = {1: "Fine-tuned answers are more like the references", -1: "Fine-tuned answers are less like the references"}
    return words.get(verdict, "There is no evidence that fine-tuning changed how like the references the answers are")


def style_sentence(metrics: Mapping[str, Any], primary: str) -> str:
    """Does it answer more like the references? The verdict on the primary metric, with its interval."""
    result = metrics["primary"]
    groups = f"{result['groups']} group{'s' * (result['groups'] != 1)}"
    detectable = ""
    if "detectable" in result:
        detectable = f" The smallest true difference that these rows would likely have shown is {result['detectable']:.3f}."
    elif result["groups"] < 6:
        detectable = " These are too few groups to show any difference, however large."
    return (
        f"**{verdict_words(metrics['verdict'], primary)}**: "
        f"{title(primary)} went from {result['zeroshot']:.3f} to {result['sft']:.3f} "
        f"({result['delta']:+.3f}, interval {said_interval(result)}, {said_p(result['p'])}) on {result['n']} "
        f"{'pairs of test rows' if primary == 'pair_matching' else 'test rows'} in {groups}.{detectable}"
    )


def knowledge_sentence(metrics: Mapping[str, Any], confidence: float) -> str:
    """Does it know better, or only sound better? From the metrics that a text's own likelihood can't move.

    They judge given answers, not the model's own: it may tell a right answer from a wrong one and still write wrong ones.
    """
    parts: list[str] = []
    gained: list[str] = []
    lost: list[str] = []
    reads = metrics.get("with_passages", 1) > 0
    speaks = "passages and question speak" if reads else "the question alone speaks"
    rows = "other rows" if "pair_matching" in metrics else "rows"
    for name, what in (
        ("pair_matching", "the answers that two questions share are matched to the right one of them in {} of {} pairs"),
        ("contrastive", f"{speaks} for the right answer more than for the wrong one in {{}} of {{}} {rows}"),
    ):
        if name in metrics:
            result = metrics[name]
            said = what.format(f"{result['sft']:.0%}", result["n"])
            parts.append(f"{said}, {result['zeroshot']:.0%} before (interval of the change {said_interval(result, 2)})")
            if result.get("p_holm", result["p"]) <= 1 - confidence and "low" in result:
                (gained if result["low"] > 0 else lost if result["high"] < 0 else []).append(name)
    if not parts:
        return (
            "**Whether it knows better can't be told**: no test row has a negative with which its context or a second question "
            "could be held against the right answer."
        )
    verdict = "**It tells right from wrong better**" if gained else "**It tells right from wrong worse**" if lost else None
    if gained and lost:
        verdict = "**It tells right from wrong better in some ways and worse in others**"
    elif verdict is None:
        verdict = "**There is no evidence that it tells right from wrong better**"
    without = ""
    if "contrastive_no_question" in metrics and reads:
        control = metrics["contrastive_no_question"]
        without = f" The passages alone do so in {control['sft']:.0%}, {control['zeroshot']:.0%} before."
    caveat = " Bare answers already differ in style (see the control): some of it may be style." if style_tells(metrics) else ""
    return f"{verdict}: " + "; ".join(parts) + "." + without + caveat


def style_tells(metrics: Mapping[str, Any]) -> bool:
    """Whether bare answers, without context and question, give the right one away: more than a tenth off one half."""
    return "answer_only" in metrics and any(abs(metrics["answer_only"][system] - 0.5) > 0.1 for system in ("zeroshot", "sft"))


def contradiction_sentence(metrics: Mapping[str, Any], primary: str) -> str:
    """What the primary metric is without the test rows that contradict another row, where there are any."""
    if not metrics["contradictory"]:
        return ""
    sentence = (
        f"{metrics['contradictory']} test rows contradict another row: the same context and question, the answers exchanged. "
    )
    if "unflagged" not in metrics:
        return sentence + "No other row has what the primary metric needs."
    result = metrics["unflagged"]["primary"]
    return (
        f"{sentence}Without them {title(primary)} goes from {result['zeroshot']:.3f} to {result['sft']:.3f} "
        f"({result['delta']:+.3f}, interval {said_interval(result)}) on {result['n']} rows."
    )


def said_holm(name: str, row: Mapping[str, Any], primary: str) -> str:
    """The corrected p-value, or why there is none: what is no claim need not be corrected for."""
    return "primary" if name == primary else f"{row['p_holm']:.4f}" if "p_holm" in row else "describes"


def render_table(metrics: Mapping[str, Any], primary: str) -> str:
    """All metrics before and after, as a Markdown table."""
    lines = ["| metric | zero-shot | fine-tuned | change | interval | p | p (Holm) | n |", "|---|--:|--:|--:|:-:|--:|--:|--:|"]
    for name, title in TITLES.items():
        if name in metrics:
            row = metrics[name]
            holm = said_holm(name, row, primary)
            lines.append(
                f"| {title} | {row['zeroshot']:.3f} | {row['sft']:.3f} | {row['delta']:+.3f} | "
                f"{said_interval(row)} | {row['p']:.4f} | {holm} | {row['n']} |"
            )
    return "\n".join(lines)


def overfitting_sentence(metrics: Mapping[str, Any], primary: str) -> str:
    """How much better the train rows are answered than the test rows, and how much of their answers is taken over."""
    part = metrics["overfitting"]
    runs = part["longest_run"]
    copied = (
        f"The longest run of words that a test answer shares with a training answer is {runs['sft']['max']} words, "
        f"{runs['sft']['mean']:.1f} on average; before, {runs['zeroshot']['max']} and {runs['zeroshot']['mean']:.1f}; "
        f"the test rows' own references, {runs['references']['max']} and {runs['references']['mean']:.1f}."
    )
    if primary not in part["gap"]:
        return copied
    gap = part["gap"][primary]
    return (
        f"On {part['train_rows']} train rows {title(primary)} is {part['train']['sft'][primary]:.3f}, "
        f"{gap['sft']:+.3f} against the test rows; before, {part['train']['zeroshot'][primary]:.3f}, {gap['zeroshot']:+.3f}. "
        + copied
    )


def votes_sentence(metrics: Mapping[str, Any]) -> str:
    """What people said who did not know whose answer was which."""
    votes = metrics["votes"]
    others = votes["files_of_other_reviews"]
    skipped = (
        f" {others} file{'s are' if others > 1 else ' is'} of another review: the answers have changed since." if others else ""
    )
    if not votes["rows"]:
        return (
            f"**Nobody has voted on these answers yet**: reports/review.html is the page for it; files go to data/votes/.{skipped}"
        )
    raters = f"{votes['raters']} rater{'s' * (votes['raters'] != 1)}"
    decided = votes["wins"] + votes["losses"]
    said = (
        f"**People chose the fine-tuned answer in {votes['wins']} of {votes['rows']} pairs**, "
        f"the zero-shot one in {votes['losses']}, none in {votes['ties']} ({raters}). "
        f"Ties as halves, that is {votes['win_rate']:.0%}"
    )
    if "win_rate_low" in votes:
        said += f" ({votes['win_rate_low']:.0%} to {votes['win_rate_high']:.0%})"
    if decided:
        low, high = votes["wins_share_low"], votes["wins_share_high"]
        said += f"; of the {decided} decided, {votes['wins_share']:.0%} ({low:.0%} to {high:.0%}, sign test {said_p(votes['p'])})"
    said += "."
    if "left_pick" in votes:
        said += (
            f" The left one was picked in {votes['left_pick']:.0%} ({votes['left_pick_low']:.0%} to {votes['left_pick_high']:.0%})."
        )
    if "self_agreement" in votes:
        said += f" Pairs shown again with sides swapped were voted on alike in {votes['self_agreement']:.0%}."
    if "identical_called_equal" in votes:
        said += f" Identical answers were called equal in {votes['identical_called_equal']:.0%}."
    if "alpha" in votes:
        said += f" Krippendorff's alpha between raters is {votes['alpha']:.2f}."
    if votes["revised"]:
        said += f" Not counted: {votes['revised']} changed after the reference was shown."
    return said + skipped


def baselines_table(metrics: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """By metric what zero-shot, fine-tuned and each of BASELINES score, None where that can't be said."""
    names = [name for name in METRICS if any(name in scores for scores in metrics["baselines"].values())]
    return {
        name: [
            *(metrics.get(name, {}).get(system) for system in ("zeroshot", "sft")),
            *(metrics["baselines"][key].get(name) for key in BASELINES),
        ]
        for name in names
    }


def render_baselines(metrics: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    heads = ["metric", "zero-shot", "fine-tuned", *BASELINES.values()]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    for name, values in baselines_table(metrics).items():
        lines.append(f"| {title(name)} | {' | '.join('' if value is None else f'{value:.3f}' for value in values)} |")
    return "\n".join(lines)


def having_both(scored: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    """The scored rows that have a metric under both systems."""
    return [scores for scores in scored if all(metric in scores[system] for system in ("zeroshot", "sft"))]


def choose_rows(scored: Sequence[Mapping[str, Any]], primary: str) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Scored rows to be shown: those that gained most by the primary metric, and those that gained least or lost."""
    sign = -1 if primary in LOWER_IS_BETTER else 1

    def gain(scores: Mapping[str, Any]) -> float:
        return float(sign * (scores["sft"][primary] - scores["zeroshot"][primary]))

    ordered = sorted(having_both(scored, primary), key=lambda scores: (gain(scores), scores["id"]))
    gained = [scores for scores in ordered[::-1][:ROWS_SHOWN] if gain(scores) > 0]
    shown = {scores["id"] for scores in gained}
    return gained, [scores for scores in ordered[:ROWS_SHOWN] if scores["id"] not in shown]


def render_row(row: Mapping[str, Any], record: Mapping[str, Any], predictions: Mapping[str, Any], primary: str) -> str:
    """One test row: its question, the reference, and both answers."""
    scores = ", ".join(f"{system} {record[system][primary]:.3f}" for system in ("zeroshot", "sft"))
    return "\n".join(
        [
            f"**{escape(row['question'])}** ({row['id']}; {title(primary)}: {scores})",
            "",
            f"- reference: {escape(row['positive'])}",
            f"- zero-shot: {escape(predictions['zeroshot'][row['id']]['prediction']) or '(empty)'}",
            f"- fine-tuned: {escape(predictions['sft'][row['id']]['prediction']) or '(empty)'}",
            "",
        ]
    )


def memory_sentence(record: Mapping[str, Any]) -> str:
    """What a training step on the longest rows was predicted to take, what it took, and what went otherwise than planned."""
    measured, predicted, longest = record["measured"], record["predicted"], record["longest"]
    rows, count = record["per_device_train_batch_size"], record["processes"]
    return "; ".join(
        [
            f"{measured['train']:,} MB in tensors at most, {predicted['peak']:,} MB predicted, on {record['device']} with the "
            f"longest rows: {rows} of {longest['length']:,} tokens at a time"
            + (f" in each of {count} processes" if count > 1 else ""),
            f"an answer that ends at that length took {measured['answer']:,} MB",
            *record["incidents"],
        ]
    )


def left_out(metrics: Mapping[str, Any]) -> str:
    """Which metrics no test row has what they need for, or nothing."""
    missing = [title(name) for name in METRICS if name not in metrics and name != "embedding_cosine"]
    needs = "a negative; for pair matching a row that swaps answers with it, for contrastive none; numbers in both answers"
    return f"Left out, since no test row has what they need ({needs}): {'; '.join(missing)}." if missing else ""


def render_markdown(
    metrics: Mapping[str, Any],
    scored: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Mapping[str, Any]]],
    facts: Mapping[str, str],
    primary: str,
    confidence: float,
) -> str:
    """The report as Markdown: the headline first. `facts` are to be listed, by name; text from data is escaped."""
    gained, lost = choose_rows(scored, primary)

    def shown(records: Sequence[Mapping[str, Any]]) -> str:
        return "\n".join(render_row(rows[record["id"]], record, predictions, primary) for record in records)

    paragraphs = [
        style_sentence(metrics, primary),
        knowledge_sentence(metrics, confidence),
        votes_sentence(metrics),
        render_table(metrics, primary),
        left_out(metrics),
        contradiction_sentence(metrics, primary),
        "Intervals draw groups of rows that share a text, never single rows; p is from swapping the two systems group by group. "
        "The control of bare answers sees neither passages nor question: far from 0.5, style or length gives the right answer "
        "away. Pair matching and contrastive judge how the model takes given answers, not what it writes: for that, read the "
        "answers below. Where a metric differs in few groups, its interval is Student's, and can disagree with p.",
        "\n".join(f"- {name}: {escape(value)}" for name, value in facts.items()),
        "## Beside simple baselines",
        render_baselines(metrics),
        "## Learned by heart?",
        overfitting_sentence(metrics, primary),
        "## Rows that gained most",
        shown(gained) or "None gained.",
        "## Rows that gained least, or lost",
        shown(lost),
    ]
    return "# Does fine-tuning help?\n\n" + "\n\n".join(paragraph.strip() for paragraph in paragraphs if paragraph) + "\n"


def render_html(
    metrics: Mapping[str, Any],
    scored: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Mapping[str, Any]]],
    passages: Mapping[str, Sequence[str]],
    facts: Mapping[str, str],
    provenance: Mapping[str, str],
    splits: Mapping[str, Mapping[str, Any]],
    history: pd.DataFrame,
    params: str,
    primary: str,
    confidence: float,
) -> str:
    """The report as a page. `passages` by row id are those that both systems were given, `splits` metrics/format.json by split,
    `history` the losses by step, `params` params.yaml as text.
    """
    gained, lost = choose_rows(scored, primary)

    def bold(sentence: str) -> tuple[str, str]:
        said = re.fullmatch(r"\*\*(.*?)\*\*(.*)", sentence, re.DOTALL)
        return (said[1], said[2]) if said else ("", sentence)

    def shown(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        made = []
        for record in records:
            row = rows[record["id"]]
            answers = [
                (said, record[system][primary], mark_common(predictions[system][row["id"]]["prediction"], row["positive"]))
                for system, said in (("zeroshot", "zero-shot"), ("sft", "fine-tuned"))
            ]
            made.append({"row": row, "answers": answers, "passages": passages[row["id"]]})
        return made

    names = [name for name in METRICS if name in metrics]
    return render_page(
        "report.html.jinja",
        metrics=metrics,
        titles=TITLES,
        said_interval=said_interval,
        said_holm=said_holm,
        lower=LOWER_IS_BETTER,
        title=title,
        names=names,
        plotted=[
            name for name in names if name in (HIGHER_IS_BETTER | LOWER_IS_BETTER) - {"bits_per_byte"} and "low" in metrics[name]
        ],
        primary=primary,
        confidence=confidence,
        sentences=[
            bold(style_sentence(metrics, primary)),
            bold(knowledge_sentence(metrics, confidence)),
            bold(votes_sentence(metrics)),
        ],
        notes=[said for said in (left_out(metrics), contradiction_sentence(metrics, primary)) if said],
        overfitting=overfitting_sentence(metrics, primary),
        style_tells=style_tells(metrics),
        baseline_heads=["zero-shot", "fine-tuned", *BASELINES.values()],
        baselines=baselines_table(metrics),
        facts=facts,
        provenance=provenance,
        splits=splits,
        losses={name: history[["step", name]].dropna().to_numpy().tolist() for name in ("loss", "eval_loss") if name in history},
        points=[
            (len(rows[scores["id"]]["positive"]), scores["zeroshot"][primary], scores["sft"][primary])
            for scores in having_both(scored, primary)
        ],
        gained=shown(gained),
        lost=shown(lost),
        params=params,
    )


def main(path: Path = Path("reports/report.md")) -> None:
    """Print the verdict and the table of a written report."""
    headline, rest = path.read_text(encoding="utf-8").split("\nIntervals draw", 1)
    facts = "\n".join(line for line in rest.splitlines() if line.startswith(("- model: ", "- data: ")))
    print(f"\n{headline.strip()}\n\n{facts}\n\nThe report with plots and answers side by side: {path.with_suffix('.html')}")


if __name__ == "__main__":
    main()
