"""Every command that README.md and docs/ print is run, in their order, or stands here with the
reason why not. Their links lead somewhere, and the memory they print is the one predicted.

The project that they are run in is small, but a real one: the repository's own files in a git and
DVC repository, with few rows and the tiny model of the tests. Slow: `pytest -m slow`, as .ci/run
does.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from all_stages import STAGES
from conftest import ROOT, SHARES, edit_yaml, find_split_seed, link_model, make_rows

from commands.memory import table
from library.llm.memory.measuring import CONTEXT_BYTES
from library.units import GIB
from stages import sample

NOT_RUN = {
    "git clone REPOSITORY && cd REPOSITORY": "the folder that this test makes is the clone",
    'LAUNCHER="torchrun --nproc-per-node 4" dvc repro': "four processes: tests/test_processes.py "
    "starts two",
    "make embed": "tests/test_embed.py runs its stages, and .ci/run this command",
    "make sweep SPACE=sweeps/learning_rate.yaml": "twelve trials: tests/test_sweep.py runs a "
    "smaller study",
    "make learning-curve": "three trainings: tests/test_learning_curve.py has smaller ones",
    "dvc exp push --no-cache origin": "belongs to the second clone of the line before",
}
NOT_RUN_PARTS = {
    "vllm serve": "needs vLLM, and a GPU",
    "-e '.[gguf]'": "downloads a package",
    "make export LLAMA_CPP": "needs llama.cpp's source; tests/test_unpacking.py has a stand-in",
    "make export SYSTEM=dpo": "needs DPO on: tests/test_dpo.py exports a tiny one",
    "ollama create": "needs Ollama; tests/test_modelfile.py reads what it would",
    "make judge": "needs a server with a model: tests/test_judge.py starts one with known replies",
    "commands.judge": "and so does this",
    "model=qwen2.5": "downloads a model",
    "commands.fetch owner/name": "downloads rows; tests/test_fetch.py reads a folder",
    "rivals=[qwen2.5": "so does this",
    "embed.model=e5": "and this",
    "embed.model=bge-m3": "and this; tests/test_embed_memory.py trains a tiny one of the kind",
    "format.retriever=tuned": "trains MiniLM first; tests/test_retrieving.py has a tiny one",
    "thinking_tokens=": "the embedded model can't think; tests/test_thinking.py asks one that can",
    "dpo.num_train_epochs=": "tests/test_dpo.py trains a tiny one",
    "sft.lora.use_rslora=": "four runs of all stages: tests/test_lora_variants.py trains tiny ones",
    "git clone URL": "tests/test_remote.py restores everything in a second clone",
    "git clone . ../gpu1": "a worker for another GPU, in the background",
}


def pages():
    """README.md, then the pages of docs/ in the order of their navigation."""
    index = ROOT / "docs/index.md"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", index.read_text(encoding="utf-8"))
    return [ROOT / "README.md", index, *(ROOT / "docs" / name for name in listed)]


def commands():
    """The lines of shell blocks, each once, comments left out and continued lines joined."""
    found = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```sh\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"\s+#\s.*$", "", line).strip()
                if command and not command.startswith("#"):
                    found.append(re.sub(r"\s+", " ", command))
    return list(dict.fromkeys(found))


def test_what_is_not_run_is_still_printed():
    printed = commands()
    assert set(NOT_RUN) <= set(printed)
    assert all(any(part in command for command in printed) for part in NOT_RUN_PARTS)
    assert len(printed) - len(NOT_RUN) > 20


def test_every_page_is_in_the_navigation_and_the_front_page_is_short():
    assert sorted(pages()) == sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(readme) <= 150
    for page in pages():
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            table = line.startswith("|") and page.name != "README.md"
            assert len(line) <= 110 or table, f"{page}:{number}: {len(line)} characters"


def heading_anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*pages(), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert "://" in target or linked.is_file(), target
        assert not anchor or anchor in heading_anchors(linked), target


def test_the_printed_memory_is_the_predicted_one(monkeypatch):
    def predict():
        lengths, limit = (1024, 2048, 4096, 6144), int(4 * GIB) - CONTEXT_BYTES
        rows = [line.split(" | ") for line in table("cuda", 1, lengths, [1], limit)]
        return {row[0].removeprefix("| "): row[2:6] for row in rows}

    cells = predict()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([\w.-]+)` \| (.* GiB.*) \|$", readme, flags=re.MULTILINE)
    assert len(shown) > 5
    for model, row in shown:
        assert row.split(" | ") == cells[model], model
    monkeypatch.setenv("DETERMINISTIC", "0")  # as it was measured
    cells = predict()
    memory = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| (.*) (\S+): predicted \| (.*) \|$", memory, flags=re.MULTILINE)
    assert len(shown) == 4
    for family, size, row in shown:
        known = cells[f"{family.lower()}-{size.lower()}-instruct"]
        assert row.split(" | ")[:4] == [cell.split(" GiB")[0] for cell in known], (family, size)


@pytest.fixture
def clone(tmp_path, monkeypatch, tiny_dir):
    """A clone of the working tree, with few rows and the tiny model; and a home with a file of
    one's own.
    """
    folder, home = tmp_path / "clone", tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\nname = Reader\nemail = reader@example.org\n")
    (home / "mine.json").write_text(json.dumps(make_rows(24, seed=2)))
    listed = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    venv = Path(os.environ.get("VIRTUAL_ENV", ROOT / ".venv"))
    (folder / ".venv").symlink_to(venv)
    for name in ("pyproject.toml", "requirements.lock"):
        os.utime(folder / name, (0, 0))  # or make would build the environment anew
    assert (venv / ".ready").exists()
    (folder / "dvc.lock").unlink()
    monkeypatch.chdir(folder)
    Path("data/raw").mkdir()
    Path("data/raw/small.json").write_text(json.dumps(make_rows(24)))
    Path("context.txt").write_text(make_rows(24)[0]["anchor"])
    # its links are committed, so that experiments in a queue have them; `local` is left to
    # docs/models.md
    Path("models/small").mkdir()
    shutil.copy("models/local/model.yaml", "models/small")
    link_model(tiny_dir, "models/small")
    (home / "model").symlink_to(tiny_dir)
    edit_yaml(
        "params.yaml",
        model="small",
        data__path="data/raw/small.json",
        split__shares=SHARES,
        split__seed=find_split_seed(
            lambda counts: all(rows > 1 for rows, _ in counts.values()),
            make_rows(24),
            make_rows(24, seed=2),
        ),
        split__on_missed_shares="continue",
        format__max_length=384,
        format__max_new_tokens=96,
        sft__learning_rate=2e-3,
        format__train_sample=4,
        sft__num_train_epochs=1.0,
        sft__eval_steps=2,
        evaluate__draws=1000,
        review__pairs=4,
        clean__max_rejected_share=0.9,
    )
    environment = {
        **os.environ,
        "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "HOME": str(home),
        "OMP_NUM_THREADS": "2",
    }
    origin = tmp_path / "origin.git"
    for command in (
        f"git init -q --bare {origin}",
        "git init -qb main",
        f"git remote add origin {origin}",
        "git add -A",
        "git add -f models/small",
        "git commit -qm Start",
        "git push -qu origin main",
    ):
        subprocess.run(command.split(), env=environment, check=True)
    return environment


@pytest.mark.slow
def test_every_printed_command_does_what_it_says(clone, tmp_path):
    def bash(command):
        finished = subprocess.run(
            ["bash", "-c", command],
            env=clone,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert finished.returncode == 0, (
            f"{command}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
        )
        return finished.stdout

    for command in commands():
        if command in NOT_RUN or any(part in command for part in NOT_RUN_PARTS):
            continue
        command = command.replace("/path/to/model", f"{clone['HOME']}/model")
        bash(command.replace("/mnt/shared/dvc", str(tmp_path / "shared")))
        if any(part in command for part in ("model=local", "sft.seeds=", "dpo.")):
            bash("git restore params.yaml")  # not for all that follows
        if command.startswith("dvc exp run --queue") and "queue start" not in command:
            # queued as printed, and taken off again: a dozen runs would take an hour
            bash("dvc queue remove --queued")
        if "dvc queue start" in command:
            for _ in range(900):
                if not re.search("Running|Queued", bash("dvc queue status")):
                    break
                time.sleep(1)
            assert "Failed" not in bash("dvc queue status")
    assert Path("reports/report.html").is_file()
    assert Path("reports/pull_request.md").is_file()
    assert Path("reports/compare.html").is_file()
    assert Path("artifacts/merged/README.md").is_file()


@pytest.mark.slow
def test_an_experiment_runs_what_it_touches_and_going_back_runs_nothing(clone):
    def repro():
        finished = subprocess.run(
            ["dvc", "repro"], env=clone, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        return re.findall(r"^Running stage '(\w+)'", finished.stdout, flags=re.MULTILINE)

    every = [stage.__name__.removeprefix("stages.") for stage in (sample, *STAGES)]
    assert sorted(repro()) == sorted(every)
    first = Path("metrics/evaluation.json").read_bytes()
    edit_yaml("params.yaml", sft__learning_rate=5e-3)
    tuned = ["sft", "predict", "seeds", "dpo", "review", "evaluate", "report", "cards"]
    assert sorted(repro()) == sorted(tuned)
    assert Path("metrics/evaluation.json").read_bytes() != first
    edit_yaml("params.yaml", sft__learning_rate=2e-3)
    assert repro() == []
    assert Path("metrics/evaluation.json").read_bytes() == first
