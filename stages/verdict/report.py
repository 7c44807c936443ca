"""The report for terminals and pull requests: two sentences of verdict, the table, and answers side by side."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN_CHARACTERS = 600
ROWS_SHOWN = 5

TITLES = {
    "rouge_l": "ROUGE-L",
    "token_f1": "token F1",
    "bits_per_byte": "bits per byte of the reference (lower is better)",
    "pair_matching": "pair matching: the question decides",
    "contrastive": "contrastive: the context decides",
    "contrastive_no_question": "the same without the question: what the passages alone tell",
    "answer_only": "control: bare answers, per byte",
    "length_ratio": "length, for each character of the reference",
    "truncated": "answers cut off at max_new_tokens (lower is better)",
}


def escape(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """Text from data on one line, so that Markdown and HTML take nothing in it for their own, shortened to `characters`."""
    line = " ".join(text.split())
    if len(line) > characters:
        line = line[:characters] + " …"
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", html.escape(line, quote=False))


def style_sentence(metrics: Mapping[str, Any], primary: str) -> str:
    """Does it answer more like the references? The verdict on the primary metric, with its interval."""
    result = metrics["primary"]
    numbers = (
        f"{TITLES[primary].split(' (')[0]} went from {result['zeroshot']:.3f} to {result['sft']:.3f} "
        f"({result['delta']:+.3f}, interval {result['low']:+.3f} to {result['high']:+.3f}, p = {result['p']:.4f})"
    )
    verdict = {
        1: "**Fine-tuning made the answers better**",
        -1: "**Fine-tuning made the answers worse**",
        0: "**There is no evidence that fine-tuning changed the answers for better or worse**",
    }
    groups = f"{metrics['groups']} group{'s' * (metrics['groups'] != 1)}"
    return f"{verdict[metrics['verdict']]}: {numbers} on {metrics['n']} test rows in {groups}."


def knowledge_sentence(metrics: Mapping[str, Any], confidence: float) -> str:
    """Does it know better, or only sound better? From the metrics that a text's own likelihood can't move.

    They judge given answers, not the model's own: it may tell a right answer from a wrong one and still write wrong ones.
    """
    parts: list[str] = []
    gained: list[str] = []
    lost: list[str] = []
    for name, what in (("pair_matching", "swapped pairs"), ("contrastive", "rows with another negative")):
        if name in metrics:
            result = metrics[name]
            parts.append(
                f"the right one of two given answers is the likelier in {result['sft']:.0%} of {result['n']} {what}, "
                f"{result['zeroshot']:.0%} before "
                f"(interval of the change {result['low']:+.2f} to {result['high']:+.2f})"
            )
            if result.get("p_holm", result["p"]) <= 1 - confidence:
                (gained if result["low"] > 0 else lost if result["high"] < 0 else []).append(name)
    if not parts:
        return "**Whether it knows better can't be told**: the test rows have no negatives."
    verdict = "**It tells right from wrong better**" if gained else "**It tells right from wrong worse**" if lost else None
    if gained and lost:
        verdict = "**It tells right from wrong better in some ways and worse in others**"
    elif verdict is None:
        verdict = "**There is no evidence that it tells right from wrong better**"
    caveat = " Bare answers already differ in style (see the control): some of it may be style." if style_tells(metrics) else ""
    return f"{verdict}: " + "; ".join(parts) + "." + caveat


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
        f"{sentence}Without them {TITLES[primary].split(' (')[0]} goes from {result['zeroshot']:.3f} to {result['sft']:.3f} "
        f"({result['delta']:+.3f}, interval {result['low']:+.3f} to {result['high']:+.3f}) on {metrics['unflagged']['n']} rows."
    )


def render_table(metrics: Mapping[str, Any]) -> str:
    """All metrics before and after, as a Markdown table."""
    lines = ["| metric | zero-shot | fine-tuned | change | interval | p | p (Holm) | n |", "|---|--:|--:|--:|:-:|--:|--:|--:|"]
    for name, title in TITLES.items():
        if name in metrics:
            row = metrics[name]
            holm = f"{row['p_holm']:.4f}" if "p_holm" in row else "primary"
            lines.append(
                f"| {title} | {row['zeroshot']:.3f} | {row['sft']:.3f} | {row['delta']:+.3f} | "
                f"{row['low']:+.3f} … {row['high']:+.3f} | {row['p']:.4f} | {holm} | {row['n']} |"
            )
    return "\n".join(lines)


def render_row(row: Mapping[str, Any], record: Mapping[str, Any], predictions: Mapping[str, Any], primary: str) -> str:
    """One test row: its question, the reference, and both answers."""
    scores = ", ".join(f"{system} {record[system][primary]:.3f}" for system in ("zeroshot", "sft"))
    return "\n".join(
        [
            f"**{escape(row['question'])}** ({row['id']}; {TITLES[primary].split(' (')[0]}: {scores})",
            "",
            f"- reference: {escape(row['positive'])}",
            f"- zero-shot: {escape(predictions['zeroshot'][row['id']]['prediction']) or '(empty)'}",
            f"- fine-tuned: {escape(predictions['sft'][row['id']]['prediction']) or '(empty)'}",
            "",
        ]
    )


def render_report(
    metrics: Mapping[str, Any],
    scored: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Mapping[str, Any]]],
    asked: Mapping[str, Any],
    lower_is_better: bool,
) -> str:
    """The whole report as Markdown. `asked` are facts of the run to be listed, by name; text from data is escaped."""
    primary = asked["primary metric"]
    having = [record for record in scored if primary in record["sft"]]
    sign = -1 if lower_is_better else 1
    ordered = sorted(having, key=lambda record: (sign * (record["sft"][primary] - record["zeroshot"][primary]), record["id"]))
    by_id = {row["id"]: row for row in rows}

    def shown(records: Sequence[Mapping[str, Any]]) -> str:
        return "\n".join(render_row(by_id[record["id"]], record, predictions, primary) for record in records)

    missing = [title for name, title in TITLES.items() if name not in metrics]
    needs = "a negative; for pair matching a row that swaps answers with it, for contrastive none that does"
    contradictions = contradiction_sentence(metrics, primary)
    left_out = f"\nLeft out, since no test row has what they need ({needs}): {'; '.join(missing)}.\n" if missing else ""
    return f"""# Does fine-tuning help?

{style_sentence(metrics, primary)}

{knowledge_sentence(metrics, asked["confidence of the intervals"])}

{render_table(metrics)}
{left_out}{contradictions and f"{chr(10)}{contradictions}{chr(10)}"}
Intervals draw groups of rows that share a text, never single rows; p is from swapping the two systems group by group. The control
of bare answers sees neither passages nor question: far from 0.5, style or length gives the right answer away. Pair matching and
contrastive judge which of two given answers a model finds likelier, not what it writes: for that, read the answers below.

{chr(10).join(f"- {name}: {escape(f'{value:.0%}' if isinstance(value, float) else str(value))}" for name, value in asked.items())}

## The {ROWS_SHOWN} rows that gained most

{shown(ordered[::-1][:ROWS_SHOWN])}
## The {ROWS_SHOWN} rows that gained least, or lost

{shown(ordered[:ROWS_SHOWN])}"""


def main(path: Path = Path("reports/report.md")) -> None:
    """Print the verdict and the table of a written report."""
    headline, rest = path.read_text(encoding="utf-8").split("\nIntervals draw", 1)
    asked = "\n".join(line for line in rest.splitlines() if line.startswith(("- model: ", "- data: ")))
    print(f"\n{headline.strip()}\n\n{asked}\n\nThe report with answers side by side: {path}")


if __name__ == "__main__":
    main()
