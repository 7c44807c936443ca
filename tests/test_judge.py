"""A language model as a judge, asked over a real socket of a server whose replies are known."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from conftest import EVALUATE, ROOT, edit_yaml, write_answers

from commands.judge import __main__ as judge
from commands.judge import asking
from library.errors import InputError
from library.files import read_json, read_jsonl, write_json
from library.pages.vote_statements import judges_statements
from library.paths import EVALUATION_PATH, REVIEW_KEY_PATH
from library.verdict.judges import (
    JudgeFile,
    JudgeVote,
    compare_with_people,
    hash_pair,
    read_judge_files,
    tally_judge,
)
from stages import evaluate, report, review

KEY = "sk-not-to-be-seen"
PATH = Path("data/votes/judge-a-b.json")


def completion(text, usage=True):
    """A chat completion as servers write it."""
    counted = {"usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}}
    message = {"role": "assistant", "content": text}
    return {"id": "1", "choices": [{"index": 0, "message": message}], **(counted if usage else {})}


def shown(body):
    """The answers that a request shows as A and as B."""
    text = body["messages"][1]["content"]
    return [
        text.partition(f"<answer {side}>\n")[2].partition(f"\n</answer {side}>")[0] for side in "AB"
    ]


def fair(body):
    """Prefers the fine-tuned answer, on whichever side; calls identical ones a tie."""
    a, b = shown(body)
    verdict = "tie" if a == b else "A" if "tuned" in a else "B"
    return 200, completion(f"It says what the passages say.\n[[{verdict}]]")


@pytest.fixture
def server(monkeypatch):
    """A server on this machine; `reply` maps a request's body to status, content and headers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((self.path, dict(self.headers), body))
            status, content, *headers = server.reply(body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {
                **(headers[0] if headers else {}),
                "Content-Length": len(data),
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked, server.reply = [], fair
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(asking, "BACKOFF_SECONDS", 0.001)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(monkeypatch):
    """Runs the command with arguments."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["judge", "a/b", *arguments])
        judge.main()
        return read_json(PATH)

    return run


@pytest.fixture
def reviewed(judged):
    """Twelve rows, of which six are on the page, one of them twice, and one identical pair."""
    predictions = judged(rows=12, review={"pairs": 6, "repeats": 1, "catch_trials": 1})
    review.main()
    return predictions


def test_every_pair_is_asked_in_both_orders_and_counted_apart_from_people(
    reviewed, server, run, monkeypatch, caplog
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    file = run("--input-price", "2", "--output-price", "10")
    assert (file["judge"], file["host"], file["temperature"]) == ("a/b", server.url[7:-3], 0.0)
    assert len(file["votes"]) == len(server.asked) == 13
    by_row = {}
    for (path, headers, body), vote in zip(server.asked, file["votes"], strict=True):
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("a/b", 0, 512)
        text = json.dumps(body)
        assert not [name for name in ("zeroshot", "sft", "fine-tuned", "zero-shot") if name in text]
        assert "The pump is made of steel." in text
        by_row.setdefault(vote["row"], []).append(shown(body))
    pairs = [orders for orders in by_row.values() if len(orders) == 2]
    assert len(pairs) == 6
    assert all(one == other[::-1] != other for one, other in pairs)
    assert KEY not in PATH.read_text() + caplog.text

    evaluate.main()
    metrics = read_json(EVALUATION_PATH)
    assert metrics["votes"]["raters"] == metrics["votes"]["rows"] == 0
    numbers = metrics["judges"]["a-b"]
    assert {name: numbers[name] for name in ("replies", "rows", "wins", "losses", "ties")} == {
        "replies": 13, "rows": 6, "wins": 6, "losses": 0, "ties": 0,
    }  # fmt: skip
    assert (numbers["win_rate"], numbers["first_pick"], numbers["followed_side"]) == (1, 0.5, 0)
    assert (numbers["identical_called_equal"], numbers["unclear"], numbers["outdated"]) == (1, 0, 0)
    # 13 · 100 tokens at 2 a million, 13 · 5 at 10
    assert (numbers["prompt_tokens"], numbers["completion_tokens"]) == (1300, 65)
    assert numbers["cost"] == pytest.approx(0.0026 + 0.00065)
    assert numbers["people"] == {"rows": 0}
    before = metrics["verdict"], metrics["primary"]
    report.main()
    for page in ("report.md", "report.html"):
        said = Path("reports", page).read_text()
        assert "a-b (a/b), a language model, preferred fine-tuned in 6 of 6 pairs" in said
        assert "No person voted on these pairs, so nothing shows that people would agree" in said
        assert "followed the side in 0% of the pairs (0% to 39%). It called identical" in said
        assert "1,300 tokens read, 65 written, cost 0.00325." in said
        assert "Nobody has voted on these answers yet" in said
    PATH.unlink()
    evaluate.main()
    without = read_json(EVALUATION_PATH)
    assert "judges" not in without
    assert (without["verdict"], without["primary"]) == before


def test_agreement_with_people_is_krippendorffs_alpha_by_hand(reviewed, server, run):
    run()
    key = read_json(REVIEW_KEY_PATH)
    pairs = [(item, entry) for item, entry in key["items"].items() if entry["kind"] == "pair"]
    votes = []
    for at, (item, entry) in enumerate(pairs):  # fine-tuned in four of six
        tuned = "x" if entry["x"] == "sft" else "y"
        choice = tuned if at < 4 else {"x": "y", "y": "x"}[tuned]
        marks = {"correct": {"x": "yes", "y": "no"}, "unsupported": {"x": False, "y": False}}
        votes.append({"item": item, "left": "x", "choice": choice, "comment": "", **marks})
    saved = {"review": key["review"], "rater": "ann", "votes": votes, "revised": []}
    write_json(Path("data/votes/votes-ann.json"), saved)
    evaluate.main()
    metrics = read_json(EVALUATION_PATH)
    assert (metrics["votes"]["raters"], metrics["votes"]["wins"]) == (1, 4)
    assert "alpha" not in metrics["votes"]
    people = metrics["judges"]["a-b"]["people"]
    assert (people["rows"], people["same"]) == (6, pytest.approx(4 / 6))
    # ten labels for fine-tuned, two for zero-shot: observed 4/12, expected (144 − 100 − 4)/132
    assert people["alpha"] == pytest.approx(1 - (4 / 12) / (40 / 132), abs=1e-6)
    report.main()
    assert (
        "It agrees with people on 67% of 6 pairs, Krippendorff's alpha -0.10"
        in Path("reports/report.md").read_text()
    )


def test_a_judge_that_follows_the_side_has_no_preference_and_is_said_to_be_a_coin(
    reviewed, server, run
):
    server.reply = lambda body: (200, completion("[[A]]", usage=False))
    run()
    evaluate.main()
    numbers = read_json(EVALUATION_PATH)["judges"]["a-b"]
    assert (numbers["first_pick"], numbers["followed_side"], numbers["win_rate"]) == (1, 1, 0.5)
    assert (numbers["wins"], numbers["losses"], numbers["ties"], numbers["p"]) == (0, 0, 6, 1)
    assert numbers["identical_called_equal"] == 0
    assert "prompt_tokens" not in numbers
    hostile = {"judges": {"<b>*": {**numbers, "model": "[x](y)"}}}
    (said,) = judges_statements(hostile, ["zeroshot", "sft"])
    assert said.claim.startswith("?b?? (?x?(y)), a language model, preferred fine-tuned in 0 of 6")
    alone = {"judges": {"gpt-5": {**numbers, "model": "gpt-5"}}}
    (said,) = judges_statements(alone, ["zeroshot", "sft"])
    assert said.claim.startswith("gpt-5, a language model, preferred")
    assert "a coin does so in half of them, so do not rely on this judge" in said.detail


def test_replies_without_a_verdict_are_counted_and_decide_nothing(reviewed, server, run):
    texts = iter(["I like both.", None, "", "[[A]] or [[B]]", *["[[B]]"] * 9])
    server.reply = lambda body: (200, completion(next(texts)))
    file = run()
    assert [vote["choice"] for vote in file["votes"][:4]] == ["unclear"] * 4
    evaluate.main()
    numbers = read_json(EVALUATION_PATH)["judges"]["a-b"]
    assert (numbers["replies"], numbers["unclear"]) == (13, 4)
    assert numbers["rows"] == 4  # two pairs lack a verdict in an order or both
    report.main()
    assert "4 of 13 replies had no verdict." in Path("reports/report.md").read_text()


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Because.\n[[B]]", "B"),
        ("[[ tie ]].", "tie"),
        ("A", "A"),
        ("**b**", "B"),
        ("Tie.", "tie"),
        ("[[A]] and again [[A]]", "A"),
        ("A is better", "unclear"),
        ("[[C]]", "unclear"),
        ("[[A]], [[B]] or [[tie]]", "unclear"),
        ("<think>[[A]]? no</think>[[B]]", "B"),
        ("<think>it is [[A]]", "unclear"),
        ("", "unclear"),
    ],
)
def test_a_verdict_is_read_only_where_there_is_one(reply, verdict):
    assert asking.read_verdict(reply) == verdict


def test_a_busy_server_is_asked_again(reviewed, server, run):
    answers = iter(
        [
            (429, {"error": "slow down"}, {"Retry-After": "0"}),
            (503, b"starting"),
            (200, completion("[[A]]")),
        ]
    )
    server.reply = lambda body: next(answers, None) or fair(body)
    file = run()
    assert len(server.asked) == 15
    assert len({json.dumps(body) for _, _, body in server.asked[:3]}) == 1
    assert [vote["choice"] for vote in file["votes"]].count("unclear") == 0


def test_what_was_judged_is_kept_when_the_server_fails_and_only_the_rest_is_asked(
    reviewed, server, run
):
    server.reply = lambda body: (500, b"broken") if len(server.asked) > 4 else fair(body)
    with pytest.raises(
        InputError, match=r"500: broken: after 6 tries; all replies so far are saved"
    ):
        run()
    assert len(read_json(PATH)["votes"]) == 4
    assert len(server.asked) == 4 + 6
    server.asked.clear()
    server.reply = fair
    assert len(run()["votes"]) == 13
    assert len(server.asked) == 9
    server.asked.clear()
    run()
    assert server.asked == []
    with pytest.raises(
        InputError, match=r"judge-a-b\.json: judged with another max_tokens; delete"
    ):
        run("--max-tokens", "9")


def test_two_settings_of_one_model_stand_side_by_side(reviewed, server, run):
    run()
    with pytest.raises(InputError, match=r"another max_tokens; .* name another with --name"):
        run("--max-tokens", "9")
    server.reply = lambda body: (200, completion("[[A]]"))
    run("--max-tokens", "9", "--name", "short")
    evaluate.main()
    judges = read_json(EVALUATION_PATH)["judges"]
    assert {name: (judged["model"], judged["wins"]) for name, judged in judges.items()} == {
        "a-b": ("a/b", 6), "short": ("a/b", 0),
    }  # fmt: skip
    report.main()
    said = Path("reports/report.md").read_text()
    assert "a-b (a/b), a language model, preferred fine-tuned in 6 of 6 pairs" in said
    assert "short (a/b), a language model, preferred fine-tuned in 0 of 6 pairs" in said


def test_a_kill_loses_no_reply(reviewed, server, run):
    wait = threading.Event()

    def hang(body):
        if len(server.asked) > 3:
            wait.wait(60)
        return fair(body)

    server.reply = hang
    command = [sys.executable, "-m", "commands.judge", "a/b"]
    killed = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        for _ in range(600):
            if len(server.asked) > 3:
                break
            time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
    finally:
        killed.kill()
        killed.wait()
        wait.set()
    assert len(read_json(PATH)["votes"]) == 3
    server.asked.clear()
    assert len(run()["votes"]) == 13
    assert len(server.asked) == 10


def test_votes_on_earlier_answers_are_not_counted_and_asked_again(reviewed, server, run, caplog):
    run()
    (row, *_) = (entry["row"] for entry in read_json(REVIEW_KEY_PATH)["items"].values())
    answers = read_jsonl(Path("data/predictions/sft.jsonl"))
    changed = [{**it, "prediction": "tuned anew"} if it["id"] == row else it for it in answers]
    write_answers("sft", changed)
    evaluate.main()
    numbers = read_json(EVALUATION_PATH)["judges"]["a-b"]
    assert (numbers["outdated"], numbers["rows"]) == (2, 5)
    report.main()
    assert (
        "2 more are about earlier answers: run make judge again"
        in Path("reports/report.md").read_text()
    )
    server.asked.clear()
    assert len(run()["votes"]) == 13
    assert len(server.asked) == 2
    assert "2 replies are about earlier answers; asking again" in caplog.text


def test_all_test_rows_can_be_judged(reviewed, server, run):
    file = run("--all")
    assert len(file["votes"]) == 12 * 2 + 1
    evaluate.main()
    assert read_json(EVALUATION_PATH)["judges"]["a-b"]["rows"] == 12


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {"error": f"wrong key {KEY}"}), r"401: .*wrong key \*\*\*.*: is OPENAI_API_KEY set"),
        ((404, {"error": "no model"}), r"404: .*no model.*: does the address end in /v1, and does"),
        ((400, {"error": "max_tokens?"}), r'completions: 400: \{"error": "max_tokens\?"\}$'),
        (
            (307, b"", {"Location": "http://elsewhere.example/v1"}),
            r"307: it redirects to elsewhere",
        ),
        ((200, b"<html>"), r"not a chat completion: <html>"),
        ((200, {"choices": []}), r"not a chat completion"),
    ],
)
def test_what_a_server_refuses_is_said_without_the_key(
    reviewed, server, run, monkeypatch, caplog, reply, message
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.reply = lambda body: reply
    with pytest.raises(InputError, match=message) as error:
        run()
    assert KEY not in str(error.value) + caplog.text
    assert len(server.asked) == 1
    assert not PATH.exists()


def test_without_a_server_it_says_so(reviewed, server, run, monkeypatch, caplog):
    server.reply = lambda body: time.sleep(1) or fair(body)
    with pytest.raises(InputError, match=r"no answer within 0\.1 s; try again, or set --timeout"):
        run("--timeout", "0.1")
    for address, message in {
        "http://127.0.0.1:1/v1": r"no answer \(Connection refused\); is the server running",
        "127.0.0.1:1/v1": r"expected an address such as http://localhost:8000/v1",
        f"http://me:{KEY}@127.0.0.1:1/v1": r"a name or password before an @; put the key into",
        f"me:{KEY}@127.0.0.1:1/v1": r"expected an address such as http://localhost:8000/v1",
        f"http://127.0.0.1:1/v1?key={KEY}": r"holds a \? or #; end it with /v1, and put a key into",
        f"http://127.0.0.1:1/v1#{KEY}": r"holds a \? or #; end it with /v1",
        f"127.0.0.1:1/v1?key={KEY}": r"holds a \? or #; end it with /v1",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            run("--base-url", address)
        assert KEY not in str(error.value)
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(InputError, match=r"which server\? Set OPENAI_BASE_URL or --base-url"):
        run()
    edit_yaml("params.yaml", review__systems=["sft", "zeroshot"])
    with pytest.raises(InputError, match=r"not of review\.systems; run `dvc repro review`"):
        run("--base-url", server.url)
    Path("reports/review_key.json").unlink()
    with pytest.raises(InputError, match=r"review_key\.json: no such file; run `dvc repro review`"):
        run("--base-url", server.url)


def test_files_that_no_judge_wrote_are_refused_and_those_of_other_systems_left_out(
    reviewed, server, run, caplog
):
    file = run()
    write_json(Path("data/votes/a-b.json"), file)
    with pytest.raises(InputError, match=r"judge-a-b\.json: a second file of the name 'a-b'"):
        read_judge_files(Path("data/votes"), ["zeroshot", "sft"])
    Path("data/votes/a-b.json").unlink()
    assert read_judge_files(Path("data/votes"), ["few_shot", "sft"]) == {}
    assert "about zeroshot and sft, review.systems are few_shot and sft; not counted" in caplog.text
    write_json(Path("data/votes/judge-2.json"), {**file, "judge": "c", "votes": [{}]})
    with pytest.raises(InputError, match=r"-2\.json: not a file that `make judge` wrote: votes"):
        read_judge_files(Path("data/votes"), ["zeroshot", "sft"])
    twice = {**file, "judge": "c", "votes": file["votes"] * 2}
    write_json(Path("data/votes/judge-2.json"), twice)
    with pytest.raises(InputError, match="votes twice on one pair in one order"):
        read_judge_files(Path("data/votes"), ["zeroshot", "sft"])


@pytest.mark.parametrize(
    ("first", "swapped", "outcome", "followed"),
    [  # zero-shot's answer is A first, and B with the sides swapped
        ("B", "A", 1, False),
        ("A", "B", 0, False),
        ("A", "A", 0.5, True),
        ("B", "B", 0.5, True),
        ("tie", "tie", 0.5, False),
        ("tie", "A", 0.5, False),
        ("B", "tie", 0.5, False),
        ("A", "tie", 0.5, False),
    ],
)
def test_a_system_wins_where_both_orders_choose_it_and_all_else_is_a_tie(
    first, swapped, outcome, followed
):
    answers = {"zeroshot": {"r": "old"}, "sft": {"r": "new"}}
    votes = [
        JudgeVote(
            row="r",
            kind="pair",
            left=left,
            choice=choice,
            answers=hash_pair("r", answers, ["sft", "zeroshot"]),
            reply="",
            prompt_tokens=None,
            completion_tokens=None,
        )
        for left, choice in (("zeroshot", first), ("sft", swapped))
    ]
    file = JudgeFile(
        judge="j",
        host="h",
        temperature=0.0,
        max_tokens=1,
        instructions="",
        systems=["zeroshot", "sft"],
        prices=None,
        votes=votes,
    )
    assert tally_judge(file, answers, "sft").outcomes == {"r": outcome}
    assert tally_judge(file, answers, "zeroshot").outcomes == {"r": 1 - outcome}
    assert tally_judge(file, answers, "sft").followed_side == [followed]


def test_a_judges_tie_agrees_with_a_tie_of_people_alone():
    judged, people = {"r": 1.0, "s": 0.5}, {"r": 0.75, "s": 0.0, "t": 1.0}
    assert compare_with_people(judged, people, EVALUATE)["same"] == 0.5


@pytest.mark.parametrize("url", ["http://[::1/v1", "http://localhost:99999/v1", "localhost"])
def test_an_address_that_is_none_is_refused_without_being_repeated(url):
    with pytest.raises(InputError, match=r"^OPENAI_BASE_URL or --base-url: expected an address"):
        asking.Judge(url, "m", None, 10, 1.0)


@pytest.mark.parametrize("key", ["sk-SECRET\r\nX: y", "sk-SECRET…", "sk-\x00SECRET"])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(key):
    with pytest.raises(InputError, match="OPENAI_API_KEY holds a character") as error:
        asking.Judge("http://localhost:1/v1", "m", key, 10, 1.0)
    assert "SECRET" not in str(error.value)


def test_a_line_break_behind_the_key_is_no_part_of_it():
    asked = asking.Judge("http://localhost:1/v1", "m", "sk-key\r\n", 10, 1.0)
    signed = asked._sign(requests.Request("POST", "http://localhost:1/v1").prepare())
    assert signed.headers["Authorization"] == "Bearer sk-key"
