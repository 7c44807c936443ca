"""The words that all pages share: names of systems and metrics, intervals, statements."""

import html
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from library.corpus.splitting import find_faults
from library.pages.rendering import plural, show_directions
from library.params import FormatParams
from library.records import DPO, FEW_SHOT, SEED_PREFIX, SFT, THINKING, ZEROSHOT
from library.units import gib
from library.verdict.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, UNBOUNDED
from library.verdict.scoring import style_tells

SHOWN_CHARACTERS = 600
TONES = {1: "better", 0: "", -1: "worse"}  # a page's colour by verdict
FEW_GROUPS = 6  # with fewer, the swap test can't reach a small p
# From these shares on, a comparison says more about the prompt than about the model.
MANY_EMPTY, MANY_TRUNCATED, MUCH_REPETITION = 0.1, 0.25, 0.25
LEAST_ROOM = 32  # tokens: a short passage


@dataclass(frozen=True)
class TunedWords:
    """What sentences call a tuned model, its answers and its training; `adjective` goes before
    "answers".
    """

    model: str
    answers: str
    training: str
    adjective: str


TUNED_WORDS = {
    SFT: TunedWords("The fine-tuned model", "Fine-tuned answers", "fine-tuning", "fine-tuned"),
    DPO: TunedWords(
        model="The model after fine-tuning and DPO",
        answers="Answers after fine-tuning and DPO",
        training="fine-tuning and DPO",
        adjective="DPO",
    ),
}
SYSTEM_NAMES = {
    ZEROSHOT: "zero-shot",
    FEW_SHOT: "few-shot",
    THINKING: "thinking",
    SFT: "fine-tuned",
    DPO: "fine-tuned, then DPO",
    "no_context": "zero-shot without passages",
}
TITLES = {
    "rouge_l": "ROUGE-L",
    "chrf": "chrF++",
    "token_f1": "token F1",
    "number_f1": "numbers and signs, F1",
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
    "loops": "answers that repeat themselves",
    "cut_at_repetition": "the primary metric on answers cut where they begin to repeat themselves",
    "cut_at_length": "the primary metric on answers cut at the reference's length",
    "repetition": "four-word sequences that repeat (lower is better)",
    "truncated": "answers cut off at max_new_tokens (lower is better)",
    "empty": "empty answers (lower is better)",
}

EXPLANATIONS = {
    "rouge_l": "words shared with the reference in the same order, gaps allowed",
    "chrf": "short runs of letters and words shared with the reference",
    "token_f1": "words shared with the reference in any order",
    "number_f1": "numbers and signs shared with the reference, by value",
    "embedding_cosine": "cosine of answer and reference by an embedding model",
    "bits_per_byte": "how unlikely the model finds the reference itself",
    "pair_matching": "two questions share two answers: does each get its own?",
    "contrastive": "context and question favour the right answer over the wrong one",
    "contrastive_no_question": "the same without the question: what the passages alone tell",
    "answer_only": "right against wrong answer, without context and question; 0.5 is chance",
    "naive_preference": "right against wrong answer by likelihood per byte, which depends on style",
    "ngram_support": "share of the answer's three-word sequences that occur in the context",
    "number_support": "share of the answer's numbers that occur in the context",
    "copied_span": "words in the longest run copied from the context",
    "length_ratio": "characters of the answer per character of the reference; 1 is the same length",
    "loops": "share of answers that repeat a run of twelve words",
    "cut_at_repetition": "what is left of a change without repetition",
    "cut_at_length": "what is left of a change at equal length",
    "repetition": "share of the answer's four-word sequences that occurred in it before",
    "truncated": "share of answers that max_new_tokens cuts off",
    "empty": "share of answers without any text",
}
# In place of the above where no passage was in any test prompt.
TITLES_WITHOUT_PASSAGES = {
    "contrastive": "contrastive: the question alone decides",
    "contrastive_no_question": "contrastive without the question: the answers alone decide",
}
EXPLANATIONS_WITHOUT_PASSAGES = {
    "contrastive": "the question alone favours the right answer over the wrong one",
    "contrastive_no_question": "the same without the question: the answers alone",
}
# Shown first after the primary metric: likeness, facts, likelihood, right from wrong.
LEADING = ("rouge_l", "number_f1", "bits_per_byte", "pair_matching", "contrastive", "chrf")
SHOWN_METRICS = 5


def title(metric: str) -> str:
    """A metric's name without its explanation."""
    return TITLES[metric].split(" (")[0].split(":")[0]


def saw_passages(metrics: Mapping[str, Any]) -> bool:
    """Whether any test prompt held a passage."""
    return bool(metrics.get("with_passages", 1) > 0)


def titles_for(metrics: Mapping[str, Any]) -> dict[str, str]:
    """TITLES, without claims about passages if no test prompt held one."""
    return TITLES if saw_passages(metrics) else TITLES | TITLES_WITHOUT_PASSAGES


def explanations_for(metrics: Mapping[str, Any]) -> dict[str, str]:
    """EXPLANATIONS, without claims about passages if no test prompt held one."""
    return EXPLANATIONS if saw_passages(metrics) else EXPLANATIONS | EXPLANATIONS_WITHOUT_PASSAGES


def leading_metrics(names: Collection[str], primary: str) -> list[str]:
    """The most important of the named metrics: the primary one and up to four others."""
    return [name for name in dict.fromkeys((primary, *LEADING)) if name in names][:SHOWN_METRICS]


@dataclass(frozen=True)
class Statement:
    """A claim and its evidence. As a string, the claim is bold Markdown."""

    claim: str
    detail: str

    def __str__(self) -> str:
        return f"**{self.claim}**{self.detail}"


def escape(text: str) -> str:
    """Text from data on one line, shortened, with Markdown and HTML escaped."""
    line = show_directions(" ".join(text.split()))
    if len(line) > SHOWN_CHARACTERS:
        line = line[:SHOWN_CHARACTERS] + " …"
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", html.escape(line, quote=False))


def format_p(p: float) -> str:
    """A p-value as sentences show it."""
    return "p < 0.0001" if p < 0.00005 else f"p = {p:.4f}"


def format_interval(result: Mapping[str, Any], digits: int = 3) -> str:
    """The interval of a change, or a note that a single group has none."""
    if "low" not in result:
        return "none: a single group"
    return f"{result['low']:+.{digits}f} to {result['high']:+.{digits}f}"


def format_holm(name: str, row: Mapping[str, Any], primary: str) -> str:
    """The Holm-corrected p-value; for what needs none, "primary" or "describes"."""
    if "p_holm" in row:
        return f"{row['p_holm']:.4f}"
    return "primary" if name == primary else "describes"


def verdict_words(verdict: int, primary: str, system: str = SFT) -> str:
    """The verdict in words that claim no more than the primary metric shows.

    That is likeness, likelihood, or telling right from wrong.
    """
    said = TUNED_WORDS[system]
    unchanged = f"There is no evidence that {said.training} changed"
    if primary in ("pair_matching", "contrastive"):
        words = {
            1: f"{said.model} tells right from wrong better",
            -1: f"{said.model} tells right from wrong worse",
            0: f"{unchanged} how well it tells right from wrong",
        }
    elif primary == "bits_per_byte":
        words = {
            1: f"{said.model} finds the references likelier",
            -1: f"{said.model} finds the references less likely",
            0: f"{unchanged} how likely the references are",
        }
    else:
        words = {
            1: f"{said.answers} are more like the references",
            -1: f"{said.answers} are less like the references",
            0: f"{unchanged} how similar the answers are to the references",
        }
    return words[verdict]


def split_statement(splits: Mapping[str, Mapping[str, Any]]) -> Statement | None:
    """A warning if the splits miss the shares that were asked for; None otherwise.

    Format stops instead unless `split.on_missed_shares` allows it. `splits` is metrics/format.json
    by split.
    """
    faults = find_faults(
        {name: (split["rows"], split["groups"]) for name, split in splits.items()},
        {name: split["asked_share"] for name, split in splits.items()},
    )
    if not faults:
        return None
    return Statement("The split is not what was asked for", f": {'; '.join(faults)}.")


def room_statement(test: Mapping[str, Any], params: FormatParams) -> Statement | None:
    """A warning if test prompts have no room for a passage, with what gives room; None otherwise.

    `test` is metrics/format.json for the test split.
    """
    without, rows = test.get("without_passages", 0), test["rows"]
    if not without:
        return None
    remedies = []
    if params.max_new_tokens > 2 * test["answer_tokens_max"]:  # room to spare for the references
        remedies.append("format.max_new_tokens")
    left = params.max_length - params.max_new_tokens - test["prompt_tokens_mean"]
    if without < rows or left >= LEAST_ROOM:
        remedies.append("format.passage_characters")
    remedy = "raise format.max_length"
    if remedies:
        remedy += f", or lower {' or '.join(remedies)}"
    if without == rows:
        return Statement(
            f"None of the {plural(rows, 'test prompt')} has room for a passage",
            f": both systems saw the question alone. To show them passages, {remedy}.",
        )
    verb = "has" if without == 1 else "have"
    return Statement(
        f"{without} of the {plural(rows, 'test prompt')} {verb} no room for a passage",
        f": there, both systems saw the question alone. To show them passages, {remedy}.",
    )


def several_sentence(metrics: Mapping[str, Any]) -> str:
    """How rows with several right answers are judged; empty if there are none."""
    count = metrics.get("several_right", 0)
    if not count:
        return ""
    verb = "has" if count == 1 else "have"
    return (
        f"{count} of {metrics['n']} test rows {verb} several right answers: an answer is scored "
        "against the most similar one; training and likelihoods use the first."
    )


def style_statement(metrics: Mapping[str, Any], primary: str, system: str = SFT) -> Statement:
    """Does it answer more like the references? The verdict on the primary metric."""
    result = metrics["primary"]
    units = "pairs of test rows" if primary == "pair_matching" else "test rows"
    power = ""
    if _too_few_groups(result, primary):
        power = " These are too few groups to show any difference, however large."
    elif "detectable" in result:
        power = (
            " The smallest true difference that these rows would likely have shown is "
            f"{result['detectable']:.3f}."
        )
    p = f"Holm {format_p(result['p_holm'])}" if "p_holm" in result else format_p(result["p"])
    return Statement(
        verdict_words(metrics["verdict"], primary, system),
        f": {title(primary)} went from {result['zeroshot']:.3f} to {result[system]:.3f} "
        f"({result['delta']:+.3f}, interval {format_interval(result)}, {p}) on "
        f"{result['n']} {units} in {plural(result['groups'], 'group')}.{power}"
        f"{one_seed_sentence(metrics, system)}"
        f"{broken_answers_sentence(metrics, system)}{wordless_sentence(metrics, primary)}",
    )


def one_seed_sentence(metrics: Mapping[str, Any], system: str = SFT) -> str:
    """What the interval leaves out if the model was trained once."""
    if metrics.get("training_seeds", 1) > 1:
        return ""
    remedy = " (sft.seeds trains with more)" if system == SFT else ""
    return (
        " It was trained with one seed: the interval covers other test rows, not another training "
        f"run{remedy}."
    )


def certainty_statement(metrics: Mapping[str, Any], primary: str, confidence: float) -> Statement:
    """How sure is the verdict? Interval, p, what they are based on, and the other metrics."""
    result = metrics["primary"]
    units = "pairs of test rows" if primary == "pair_matching" else "test rows"
    claim = f"The {confidence:.0%} interval of the change is {format_interval(result)}"
    seeds = metrics.get("training_seeds", 1)
    trained = f" and {seeds} training seeds" if seeds > 1 else ""
    others = changes_sentence(*count_changes(metrics, primary, confidence), "other metric")
    return Statement(
        claim,
        f", {format_p(result['p'])}, on {result['n']:,} {units} in "
        f"{plural(result['groups'], 'independent group')}{trained}.{others}",
    )


def changes_sentence(better: int, worse: int, every: int, noun: str) -> str:
    """How many of the others changed, by their corrected p; empty if there are none.

    Begins with a space, as it follows another sentence.
    """
    if not every:
        return ""
    verb = "is" if better == 1 else "are"
    return (
        f" Of {plural(every, noun)}, {better} {verb} significantly better and {worse} "
        "significantly worse (p corrected by Holm)."
    )


def count_changes(
    metrics: Mapping[str, Any], primary: str, confidence: float
) -> tuple[int, int, int]:
    """How many metrics other than the primary one are significantly better, how many worse, and how
    many were tested.
    """
    claims = [
        name
        for name in sorted(HIGHER_IS_BETTER | LOWER_IS_BETTER)
        if name != primary and "p_holm" in metrics.get(name, {})
    ]
    turned = {name: -1 if name in LOWER_IS_BETTER else 1 for name in claims}
    sure = [
        turned[name] * (1 if metrics[name]["low"] > 0 else -1)
        for name in claims
        if metrics[name]["p_holm"] <= 1 - confidence
        and (metrics[name].get("low", 0) > 0 or metrics[name].get("high", 0) < 0)
    ]
    return sure.count(1), sure.count(-1), len(claims)


def doubt_statements(
    metrics: Mapping[str, Any], primary: str, systems: Sequence[str], confidence: float
) -> list[Statement]:
    """What would change the verdict? What was not tried, what these rows can't show, and what
    contradicts it. `systems` are those that people vote on.
    """
    doubts = (
        rows_doubt(metrics, primary),
        prompt_doubt(metrics, primary),
        seed_doubt(metrics),
        votes_doubt(metrics, systems, confidence),
    )
    return [doubt for doubt in doubts if doubt is not None]


def rows_doubt(metrics: Mapping[str, Any], primary: str) -> Statement | None:
    """Would more test rows change the verdict? None if that is unknown."""
    result = metrics["primary"]
    least = result.get("detectable")
    if _too_few_groups(result, primary):
        return Statement("More test rows", ": these groups are too few to show any difference.")
    if not least:  # not known, or all groups differ alike
        return None
    if metrics["verdict"] == 0:
        return Statement(
            "More test rows",
            f": a true difference below {least:.3f} would likely have been missed. Run make "
            "sample-size to see how many rows a smaller one takes.",
        )
    change = abs(result["delta"])
    if change < 2 * least:
        return Statement(
            "More test rows",
            f": the change, {change:.3f}, is near the smallest that these would likely have "
            f"shown, {least:.3f}.",
        )
    return Statement(
        "Not likely: more test rows",
        f". The change is {change / least:.0f} times the smallest that these would likely have "
        f"shown, {least:.3f}.",
    )


def prompt_doubt(metrics: Mapping[str, Any], primary: str) -> Statement | None:
    """Could another prompt do as much as fine-tuning? None if fine-tuning did not help, or if it
    beats few-shot and nothing points at the prompt.
    """
    if metrics["verdict"] != 1:
        return None
    ending, broken = ending_statement(metrics, primary), _broken_answers(metrics, ZEROSHOT)
    if ending is not None:
        return Statement("A prompt for shorter answers", f": {_begin_small(ending.claim)}.")
    if broken:
        short = " or a larger format.max_new_tokens" if _cut_early(metrics, ZEROSHOT) else ""
        return Statement(f"Another prompt{short}", f": {broken[0]}.")
    judged = metrics.get("others", {}).get(FEW_SHOT)
    if judged is None:
        return Statement(
            "A few-shot prompt",
            ": not tried. Set evaluate.few_shot to 3 for three examples in the prompt.",
        )
    result = judged["tuned"][primary]
    claims = {
        -1: "Few-shot does better than fine-tuning",
        0: "Few-shot may do as well as fine-tuning",
    }
    if judged["tuned"]["verdict"] == 1:
        return None
    return Statement(
        claims[judged["tuned"]["verdict"]],
        f": {title(primary)} {result[FEW_SHOT]:.3f} against {result[SFT]:.3f}.",
    )


def seeds_command(taken: Iterable[Any], options: Sequence[str] = ()) -> str:
    """The command that trains with two seeds more than those `taken` by sft.seed."""
    taken = set(taken)
    one, other, *_ = (seed for seed in range(1, len(taken) + 3) if seed not in taken)
    return shlex.join(["dvc", "exp", "run", *options, "-S", f"sft.seeds=[{one},{other}]"])


def seed_doubt(metrics: Mapping[str, Any]) -> Statement | None:
    """Would another training run change the verdict? None if training adds less than half of the
    uncertainty.
    """
    if metrics.get("training_seeds", 1) == 1:
        return Statement(
            "Another training seed",
            ": this is one training run, and its interval does not cover another. sft.seeds trains "
            "with more.",
        )
    result = metrics["primary"]
    if result.get("training_share", 0) < 0.5:
        return None
    return Statement(
        "More training seeds",
        f": {result['training_share']:.0%} of the squared standard error is due to training. One "
        f"more would make the interval about ±{result['half_width_next_seed']:.3f}, now "
        f"±{result['half_width']:.3f}.",
    )


def votes_doubt(
    metrics: Mapping[str, Any], systems: Sequence[str], confidence: float
) -> Statement | None:
    """What people's blind votes say against the verdict, or that there are none. None if they
    agree with it.
    """
    votes, (baseline, candidate) = metrics["votes"], map(system_name, systems)
    if not votes["rows"]:
        return Statement(
            "Blind votes",
            ": nobody has voted yet, and likeness to a reference is not truth. "
            "reports/review.html is the page for it.",
        )
    if list(systems) != [ZEROSHOT, SFT]:
        return None
    leaning = (votes["wins"] > votes["losses"]) - (votes["wins"] < votes["losses"])
    sure = votes.get("p", 1) <= 1 - confidence
    if sure and leaning == metrics["verdict"]:
        return None
    chosen = f"{candidate} in {votes['wins']}, {baseline} in {votes['losses']}"
    return Statement(
        "People disagree" if sure else "More blind votes",
        f": of {votes['rows']} pairs, people chose {chosen} (sign test "
        f"{format_p(votes.get('p', 1))}).",
    )


def _begin_small(claim: str) -> str:
    return claim[0].lower() + claim[1:]


def _too_few_groups(result: Mapping[str, Any], primary: str) -> bool:
    """Whether no difference, however large, could have been shown."""
    return bool(
        result["groups"] < FEW_GROUPS
        or (primary not in UNBOUNDED and result.get("detectable", 0) >= 1)
    )


def broken_answers_sentence(metrics: Mapping[str, Any], tuned: str = SFT) -> str:
    """A warning if many of a system's answers are empty, cut off or repetitive; empty otherwise.

    Begins with a space, as it follows the verdict.
    """
    found = {system: _broken_answers(metrics, system) for system in (ZEROSHOT, tuned)}
    sentences = "".join(f" {said}." for said in [*found[ZEROSHOT], *found[tuned]])
    if found[ZEROSHOT]:
        short = " or a larger format.max_new_tokens" if _cut_early(metrics, ZEROSHOT) else ""
        sentences += (
            " With such answers to beat, the prompt alone can explain a gain: read them, and try "
            f"another prompt{short}, before you trust it."
        )
    return sentences


def _cut_early(metrics: Mapping[str, Any], system: str) -> bool:
    """Whether many answers are cut off, most of them before they repeat themselves: these may have
    needed more tokens, while an answer in a loop never ends.
    """
    if "truncated" not in metrics or "loops" not in metrics:
        return False
    cut, loops = metrics["truncated"][system], metrics["loops"][system]
    return bool(cut >= MANY_TRUNCATED and loops < cut / 2)


def _broken_answers(metrics: Mapping[str, Any], system: str) -> list[str]:
    early = (
        ", most of them before they repeat themselves: format.max_new_tokens may be too small"
        if _cut_early(metrics, system)
        else ""
    )
    words = {
        "empty": (MANY_EMPTY, "{:.0%} of the {} answers are empty"),
        "truncated": (
            MANY_TRUNCATED,
            f"{{:.0%}} of the {{}} answers are cut off at max_new_tokens{early}",
        ),
        "repetition": (
            MUCH_REPETITION,
            "{:.0%} of the four-word sequences in the {} answers are repetitions",
        ),
    }
    adjective = TUNED_WORDS[system].adjective if system in TUNED_WORDS else system_name(system)
    return [
        said.format(metrics[name][system], adjective)
        for name, (least, said) in words.items()
        if name in metrics and metrics[name][system] >= least
    ]


def wordless_sentence(metrics: Mapping[str, Any], primary: str) -> str:
    """How many references have no word, if the primary metric counts words; empty otherwise."""
    count = metrics.get("wordless_references", 0)
    if not count or primary not in ("rouge_l", "token_f1"):
        return ""
    verb = "holds" if count == 1 else "hold"
    return (
        f" Of {metrics['n']} references {count} {verb} only signs and no word: {title(primary)} is "
        "0 there, whatever the answer."
    )


def seeds_statement(metrics: Mapping[str, Any], primary: str) -> Statement | None:
    """Would the result hold if the model was trained again? What training and test rows each add to
    the uncertainty, and what more of either would buy; None with one seed, which can't tell.
    """
    count, result = metrics.get("training_seeds", 1), metrics["primary"]
    if count == 1:
        return None
    by_seed = metrics["by_seed"].values()
    claim = f"It was trained with {count} seeds"
    detail = (
        f": {title(primary)} is {min(by_seed):.3f} to {max(by_seed):.3f} by seed. Comparisons with "
        "the fine-tuned model take the mean over them, and their intervals cover other test rows "
        "and other seeds"
    )
    if "training_share" in result:
        together = 1 - result["training_share"] - result["rows_share"]
        detail += (
            f"; {result['training_share']:.0%} of its squared standard error is due to training, "
            f"{result['rows_share']:.0%} to the choice of test rows"
            f"{', the rest to both together' if together >= 0.005 else ''}. "
            f"The interval by Student's quantiles is ±{result['half_width']:.3f}; one more seed "
            f"would make it about ±{result['half_width_next_seed']:.3f}, twice the test groups "
            f"±{result['half_width_twice_groups']:.3f}"
        )
    return Statement(
        claim,
        f"{detail}. Answers shown, scores by row, train rows, forgetting and votes come "
        "from the first seed alone.",
    )


def ending_statement(
    metrics: Mapping[str, Any], primary: str, system: str = SFT
) -> Statement | None:
    """Is most of the gain just that answers end? A warning if at most half of it is left once both
    systems' answers are cut where they begin to repeat themselves, or at the reference's length.
    """
    gain = metrics["primary"]["delta"]
    if metrics["verdict"] != 1:
        return None
    for name, claim, where in (
        (
            "cut_at_repetition",
            "Most of the gain is that answers end",
            "where they begin to repeat themselves",
        ),
        (
            "cut_at_length",
            "Most of the gain is that answers are no longer than the references",
            "at the reference's length",
        ),
    ):
        if name not in metrics or metrics[name]["delta"] > gain / 2:
            continue
        result, loops = metrics[name], metrics["loops"]
        return Statement(
            claim,
            f": with all answers cut {where}, {title(primary)} goes from {result['zeroshot']:.3f} "
            f"to {result[system]:.3f} ({result['delta']:+.3f}, interval "
            f"{format_interval(result)}), against {gain:+.3f} on whole answers. "
            f"{loops['zeroshot']:.0%} of the zero-shot answers repeat themselves, "
            f"{loops[system]:.0%} of the {TUNED_WORDS[system].adjective} ones. Another prompt may "
            "do as much; prompts/brief.jinja asks for as many sentences as the references have, if "
            "it was not that one.",
        )
    return None


def knowledge_statement(
    metrics: Mapping[str, Any], confidence: float, system: str = SFT
) -> Statement:
    """Does it know better, or only sound better? Judged by metrics in which a text's own likelihood
    cancels.

    They judge given answers, not the model's own: it may tell a right answer from a wrong one and
    still write wrong ones.
    """
    reads = saw_passages(metrics)
    speaks = "passages and question favour" if reads else "the question alone favours"
    rows = "other rows" if "pair_matching" in metrics else "rows"
    said = {
        "pair_matching": (
            "of two answers that two questions share, each is matched to its own question in {} of "
            "{} pairs"
        ),
        "contrastive": (f"{speaks} the right answer over the wrong one in {{}} of {{}} {rows}"),
    }
    judged = {name: metrics[name] for name in said if name in metrics}
    if not judged:
        return Statement(
            "Whether it knows better can't be told",
            ": no test row has a wrong answer to compare the right one with.",
        )
    parts = [
        said[name].format(f"{result[system]:.0%}", result["n"])
        + f", {result['zeroshot']:.0%} before (interval of the change {format_interval(result, 2)})"
        for name, result in judged.items()
    ]
    without = ""
    if "contrastive_no_question" in metrics and reads:
        control = metrics["contrastive_no_question"]
        without = (
            f" The passages alone do so in {control[system]:.0%}, {control['zeroshot']:.0%} before."
        )
    caveat = ""
    if style_tells(metrics, system):
        caveat = " Bare answers already differ in style (see the control): some of it may be style."
    claim = _knowledge_claim(judged, confidence)
    return Statement(claim, f": {'; '.join(parts)}.{without}{caveat}")


RETRIEVERS = {
    "bm25": "BM25",
    "embedding": "the embedding model",
    "tuned": "the fine-tuned embedding model",
}


def system_name(system: str) -> str:
    """A system's name for readers; a rival's is its folder in models/, which needs no escaping."""
    if system.startswith(SEED_PREFIX):
        return f"fine-tuned with seed {system.removeprefix(SEED_PREFIX)}"
    return SYSTEM_NAMES.get(system) or f"{system}, zero-shot"


# By the verdict on fine-tuned against DPO.
DPO_CLAIMS = {
    1: "DPO made the fine-tuned model worse",
    -1: "DPO made the fine-tuned model better",
    0: "There is no evidence that DPO changed the fine-tuned model",
}


def others_statements(metrics: Mapping[str, Any], primary: str) -> list[Statement]:
    """Does fine-tuning beat few-shot, thinking and other models, and did DPO add to it? One
    statement a system.
    """
    said = []
    for system, judged in metrics.get("others", {}).items():
        name = system_name(system)
        tuned, against = judged["tuned"][primary], judged[primary]
        claims = {
            1: f"Fine-tuning beats {name}",
            -1: f"Fine-tuning is beaten by {name}",
            0: f"Fine-tuning and {name} can't be told apart",
        }
        if system == DPO:
            claims = DPO_CLAIMS
        said.append(
            Statement(
                claims[judged["tuned"]["verdict"]],
                f": {title(primary)} is {tuned['sft']:.3f} fine-tuned against {tuned[system]:.3f} "
                f"({tuned['delta']:+.3f}, interval {format_interval(tuned)}, Holm "
                f"{format_p(tuned['p_holm'])}). Against zero-shot, {name} is "
                f"{against['delta']:+.3f} (interval {format_interval(against)})."
                f"{_first_seed_sentence(metrics, system)}{_examples_sentence(judged)}"
                f"{_told_sentence(judged, system)}",
            )
        )
    return said


def no_gain_sentence(metrics: Mapping[str, Any], primary: str) -> str:
    """That DPO did not make the fine-tuned model better; empty if it did."""
    tuned = metrics["others"][DPO]["tuned"]
    result = tuned[primary]
    if tuned["verdict"] == -1:
        return ""
    return (
        f"{DPO_CLAIMS[tuned['verdict']]}: {title(primary)} is {result[DPO]:.3f}, "
        f"{result[SFT]:.3f} before it (Holm {format_p(result['p_holm'])})."
    )


def _first_seed_sentence(metrics: Mapping[str, Any], system: str) -> str:
    """What DPO is compared with if the model was trained with several seeds; else empty."""
    if system != DPO or metrics.get("training_seeds", 1) == 1:
        return ""
    return " Both are of the first seed: DPO started from its adapter."


def _examples_sentence(judged: Mapping[str, Any]) -> str:
    """How many examples fitted, if fewer than were asked for; else empty."""
    examples = judged.get("examples")
    if examples is None or examples["mean"] == examples["asked"]:
        return ""
    without = examples["rows_without"]
    none = f", and {plural(without, 'row')} had none" if without else ""
    return (
        f" Of {examples['asked']} examples a row, {examples['mean']:.1f} fitted on average{none}; "
        "format.max_length limits them."
    )


def _told_sentence(judged: Mapping[str, Any], system: str) -> str:
    """How well it tells right from wrong, compared with the fine-tuned model."""
    parts = [
        f"{result[system]:.0%} {of}, {result['sft']:.0%} of the fine-tuned"
        for metric, of in (
            ("pair_matching", "of its pairs are matched right"),
            ("contrastive", "of its rows favour the right answer"),
        )
        if (result := judged["tuned"].get(metric)) is not None
    ]
    return f" {'; '.join(parts)}." if parts else ""


def result_statements(
    metrics: Mapping[str, Any], primary: str, confidence: float
) -> list[Statement]:
    """The statements about metrics/evaluation.json, in the order of every page."""
    statements = (
        style_statement(metrics, primary),
        seeds_statement(metrics, primary),
        ending_statement(metrics, primary),
        knowledge_statement(metrics, confidence),
        *others_statements(metrics, primary),
        forgetting_statement(metrics),
    )
    return [statement for statement in statements if statement is not None]


def evaluation_of(metrics: Mapping[str, Any], system: str, primary: str) -> Mapping[str, Any]:
    """What metrics/evaluation.json says about sft or dpo against zero-shot, in the file's shape.

    Means are under the system's name. What was measured of sft alone is not in dpo's: forgetting,
    over-fitting, rows without contradictions.
    """
    if system == SFT:
        return metrics
    shared = ("n", "groups", "contradictory", "with_passages", "wordless_references", "baselines")
    judged = metrics["others"][system]
    return {
        **{name: metrics[name] for name in shared if name in metrics},
        **judged,
        "primary": judged[primary],
    }


def dpo_statements(metrics: Mapping[str, Any], primary: str, confidence: float) -> list[Statement]:
    """The statements about the model after DPO: against zero-shot, then against fine-tuning."""
    own = evaluation_of(metrics, DPO, primary)
    alone = {**metrics, "others": {DPO: metrics["others"][DPO]}}
    statements = (
        style_statement(own, primary, DPO),
        ending_statement(own, primary, DPO),
        knowledge_statement(own, confidence, DPO),
        *others_statements(alone, primary),
    )
    return [statement for statement in statements if statement is not None]


def forgetting_statement(metrics: Mapping[str, Any]) -> Statement | None:
    """What did tuning break? Measured on a text that has nothing to do with the rows."""
    result = metrics.get("general_text")
    if result is None:
        return None
    claim = "There is no evidence that tuning made it forget"
    if result.get("low", 0) > 0:
        claim = "Tuning made it forget some of what it knew"
    elif result.get("high", 0) < 0:
        claim = "Tuning did not make unrelated text less likely"
    return Statement(
        claim,
        f": a text that has nothing to do with the rows takes {result['sft']:.3f} bits per byte, "
        f"{result['zeroshot']:.3f} before ({result['delta']:+.3f}, interval "
        f"{format_interval(result)}, {plural(result['n'], 'paragraph')}).",
    )


def _knowledge_claim(judged: Mapping[str, Mapping[str, Any]], confidence: float) -> str:
    sure = [
        result
        for result in judged.values()
        if result.get("p_holm", result["p"]) <= 1 - confidence and "low" in result
    ]
    gained = any(result["low"] > 0 for result in sure)
    lost = any(result["high"] < 0 for result in sure)
    if gained and lost:
        return "It tells right from wrong better in some ways and worse in others"
    if gained:
        return "It tells right from wrong better"
    if lost:
        return "It tells right from wrong worse"
    unsure = [result for result in judged.values() if "low" in result]
    if any(result["high"] < 0 for result in unsure):
        return "It may tell right from wrong worse: an interval says so, the corrected p does not"
    return "There is no evidence that it tells right from wrong better"


def contradiction_sentence(metrics: Mapping[str, Any], primary: str, system: str = SFT) -> str:
    """The primary metric without the test rows that contradict another row; empty if none do."""
    if not metrics["contradictory"]:
        return ""
    sentence = (
        f"{metrics['contradictory']} test rows contradict another row: the same context and "
        "question, with right and wrong answer swapped. "
    )
    if system != SFT:
        return f"{sentence}{TUNED_WORDS[system].adjective} was not compared without them."
    if "unflagged" not in metrics:
        return sentence + "No other row has what the primary metric needs."
    result = metrics["unflagged"]["primary"]
    return (
        f"{sentence}Without them {title(primary)} goes from {result['zeroshot']:.3f} to "
        f"{result['sft']:.3f} ({result['delta']:+.3f}, interval {format_interval(result)}) on "
        f"{result['n']} rows."
    )


def overfitting_sentence(metrics: Mapping[str, Any], primary: str) -> str:
    """How much better train rows are answered than test rows, and how much is copied from them."""
    part = metrics["overfitting"]
    runs = part["longest_run"]
    copied = (
        "The longest run of words that a fine-tuned test answer shares with a training answer has "
        f"{runs['sft']['max']} words ({runs['sft']['mean']:.1f} on average), that of a zero-shot "
        f"answer {runs['zeroshot']['max']} ({runs['zeroshot']['mean']:.1f}), and that of the test "
        f"rows' own references {runs['references']['max']} ({runs['references']['mean']:.1f})."
    )
    if metrics.get("training_seeds", 1) > 1:
        copied += " All of this is about the first seed."
    if primary not in part["gap"]:
        return copied
    gap, train = part["gap"][primary], part["train"]
    return (
        f"On {part['train_rows']} train rows, fine-tuned {title(primary)} is "
        f"{train['sft'][primary]:.3f}, {_describe_lead(gap['sft'])} than on the test rows; "
        f"zero-shot it is {train['zeroshot'][primary]:.3f}, {_describe_lead(gap['zeroshot'])}. "
        f"{copied}"
    )


def _describe_lead(gap: float) -> str:
    return f"{abs(gap):.3f} {'lower' if gap < 0 else 'higher'}"


def memory_sentence(record: Mapping[str, Any]) -> str:
    """Predicted and measured memory of a training step, and what did not go as planned."""
    measured, predicted, longest = record["measured"], record["predicted"], record["longest"]
    rows, count = record["per_device_train_batch_size"], record["processes"]
    parts = [
        f"{gib(measured['train'] * 1e6)} in tensors at most, {gib(predicted['peak'] * 1e6)} "
        f"predicted, on "
        f"{record['device']} with the longest rows: {rows} of {longest['length']:,} tokens at a "
        "time"
        + (f" in each of {count} processes" if count > 1 else "")
        + (", with gradient checkpointing" if record["gradient_checkpointing"] else ""),
        f"an answer that ends at that length took {gib(measured['answer'] * 1e6)}",
    ]
    return "; ".join([*parts, *record["incidents"]])


def repeatable_sentence(records: Sequence[Mapping[str, Any]]) -> str:
    """Whether the same run gives the same bytes. `records` say on which device each part ran, and
    on CUDA whether with deterministic algorithms.
    """
    on_cuda = [record for record in records if not record["device"].startswith("CPU")]
    if not on_cuda:
        return "yes: the same CPU and packages give the same bytes"
    if all(record.get("deterministic") for record in on_cuda):
        return (
            "yes: computed with deterministic algorithms; the same card, driver, packages and "
            "batch size give the same bytes"
        )
    return (
        "no: CUDA's fastest algorithms were allowed (DETERMINISTIC=0 in the environment), and a "
        "second run can differ"
    )


def render_table(metrics: Mapping[str, Any], primary: str, system: str = SFT) -> str:
    """All metrics before and after, as a Markdown table."""
    lines = [
        f"| metric | zero-shot | {system_name(system)} | the reference itself | change | interval "
        "| p | p (Holm) | n |",
        "|---|--:|--:|--:|--:|:-:|--:|--:|--:|",
    ]
    gold = metrics.get("baselines", {}).get("gold", {})
    for name, title in titles_for(metrics).items():
        if name in metrics:
            row = metrics[name]
            holm = format_holm(name, row, primary)
            lines.append(
                f"| {title} | {row['zeroshot']:.3f} | {row[system]:.3f} | "
                f"{'' if name not in gold else format(gold[name], '.3f')} | {row['delta']:+.3f} | "
                f"{format_interval(row)} | {row['p']:.4f} | {holm} | {row['n']} |"
            )
    return "\n".join(lines)
