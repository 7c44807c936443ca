"""The workflows trust nothing that a pull request brings: read as YAML, and the script that posts
run by node, if there is one.
"""

import json
import shutil
import subprocess

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from library.pages.comment import MARKER

WORKFLOWS = {
    path.stem: YAML(typ="safe").load(path)
    for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
}
STEPS = [
    (name, step)
    for name, workflow in WORKFLOWS.items()
    for job in workflow["jobs"].values()
    for step in job["steps"]
]


def test_no_command_is_put_together_from_what_others_wrote():
    assert WORKFLOWS.keys() == {"check", "comment", "report"}
    for name, step in STEPS:
        for text in (step.get("run", ""), step.get("with", {}).get("script", "")):
            assert "${{" not in text, f"{name}: {text}"
        if "uses" in step:
            assert len(step["uses"].split("@")[1]) == 40, (
                f"{name}: {step['uses']}: a tag can be moved"
            )
    assert "pull_request_target" not in json.dumps(WORKFLOWS)
    assert "secrets." not in json.dumps(WORKFLOWS)


def test_what_runs_a_pull_requests_code_can_only_read_and_what_can_write_runs_none():
    for name in ("check", "report"):
        assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
        assert all("permissions" not in job for job in WORKFLOWS[name]["jobs"].values())
        for other, step in STEPS:
            if other == name and "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
    comment = WORKFLOWS["comment"]
    assert comment["permissions"] == {}
    assert comment["jobs"]["comment"]["permissions"] == {
        "actions": "read",
        "pull-requests": "write",
    }
    assert comment["on"] == {"workflow_run": {"workflows": ["report"], "types": ["completed"]}}
    steps = comment["jobs"]["comment"]["steps"]
    assert [step["uses"].split("@")[0] for step in steps] == [
        "actions/download-artifact",
        "actions/github-script",
    ]


HARNESS = """
const said = [];
const pull = { state: 'open', head: { sha: 'abc', ref: 'branch', repo: { id: 7 } }, ...PULL };
const github = {
  rest: {
    pulls: { get: async () => ({ data: pull }) },
    issues: {
      listComments: null,
      createComment: async (given) => said.push(['create', given]),
      updateComment: async (given) => said.push(['update', given]),
    },
  },
  paginate: async () => COMMENTS,
};
const context = {
  repo: { owner: 'o', repo: 'r' },
  payload: { workflow_run: { head_sha: 'abc', head_branch: 'branch', head_repository: { id: 7 } } },
};
const core = { notice: () => said.push(['notice']) };
(async () => { SCRIPT })()
  .catch((error) => said.push(['error', error.message]))
  .then(() => console.log(JSON.stringify(said)));
"""


@pytest.fixture
def post(tmp_path):
    """Run the script that posts, with GitHub's answers by hand; what it asked for, in order."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = WORKFLOWS["comment"]["jobs"]["comment"]["steps"][1]["with"]["script"]
    folder = tmp_path / "comment"
    folder.mkdir()

    def run(text, number="12", comments=(), **pull):
        (folder / "pull_request.md").write_text(text)
        (folder / "number").write_text(number)
        program = (
            HARNESS.replace("PULL", json.dumps(pull))
            .replace("COMMENTS", json.dumps(comments))
            .replace("SCRIPT", script)
        )
        environment = {"RUNNER_TEMP": str(tmp_path)}
        done = subprocess.run(
            [node, "-"], input=program, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    return run


def test_a_comment_is_made_once_and_then_updated(post):
    ((kind, given),) = post(f"{MARKER}\n\nAll is well.\n")
    assert (kind, given["issue_number"], given["body"]) == (
        "create",
        12,
        f"{MARKER}\n\nAll is well.\n",
    )
    ours = {"id": 3, "user": {"login": "github-actions[bot]"}, "body": f"{MARKER}\nold"}
    others = {"id": 2, "user": {"login": "somebody"}, "body": f"{MARKER}\nmine"}
    ((kind, given),) = post(f"{MARKER}\nnew", comments=[others, ours])
    assert (kind, given["comment_id"]) == ("update", 3)


def test_a_comment_of_a_forged_report_is_only_text(post):
    forged = "&commat;team &#x40;team &num;4 GH-12\n"
    forged += (
        "@team [x](https://evil) ![y](//evil) <a href=x>y</a> www.evil.example #4\n[z]: "
        "//evil\n<details>"
    )
    ((_, given),) = post(f"{MARKER}\n{forged}")
    body = given["body"]
    for live in (
        "@team",
        "](",
        "]:",
        "://",
        "<a",
        "</a",
        "www.",
        "#4",
        "&commat;",
        "&#x40;",
        "&num;",
        "GH-12",
    ):
        assert live not in body
    assert body.replace("\u200b", "") == f"{MARKER}\n{forged}"
    assert "<details>" in body


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"number": "12; rm -rf /"}, "number: expected a file of at most 10 bytes"),
        ({"number": "1e3"}, "number: expected that of a pull request"),
        ({"text": "hello"}, "does not begin as a report does"),
        ({"text": f"{MARKER}\n" + "x" * 65_536}, "longer than a comment can be"),
        ({"text": f"{MARKER}\n" + "x" * 300_000}, "expected a file of at most 262144 bytes"),
        (
            {"head": {"sha": "abc", "ref": "branch", "repo": {"id": 8}}},
            "the report is not of this pull request",
        ),
        (
            {"head": {"sha": "abc", "ref": "branch", "repo": None}},
            "the report is not of this pull request",
        ),
    ],
)
def test_a_forged_report_is_refused(post, arguments, said):
    ((kind, message),) = post(
        arguments.pop("text", f"{MARKER}\n"), arguments.pop("number", "12"), **arguments
    )
    assert kind == "error"
    assert said in message


def test_a_report_on_an_older_commit_is_not_posted(post):
    assert post(f"{MARKER}\n", head={"sha": "new", "ref": "branch", "repo": {"id": 7}}) == [
        ["notice"]
    ]
    assert post(f"{MARKER}\n", state="closed") == [["notice"]]
