import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from all_stages import JUDGED
from conftest import ROOT, copy_params, edit_yaml, link_model
from markdown_it import MarkdownIt
from peft import PeftModel
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from commands import export
from library.errors import InputError
from library.files import hash_adapter, hash_file, read_json, read_jsonl, write_json
from library.llm.answering import answer_rows
from library.llm.chat_template import load_tokenizer, prompt_ids
from library.llm.loading import load_merged
from library.llm.memory.formula import Adapter, predict_merging
from library.llm.memory.measuring import SPARE
from library.llm.memory.planning import read_sizes
from library.pages.cards import ModelFacts, render_card, shipped_statement
from library.params import load_params
from library.paths import (
    ADAPTER_DIR,
    ADAPTER_DIRS,
    BASE_DIR,
    EVALUATION_PATH,
    MERGED_DIR,
    answerer_path,
    answers_name,
    formatted_path,
    predictions_path,
)
from library.records import DPO, SFT
from library.units import GIB
from library.verdict.metrics import score_row
from stages import base, evaluate, review

MERGED = {
    "Modelfile",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(autouse=True)
def no_options(monkeypatch):
    """`export.main` is run as without options; a test may give it some."""
    monkeypatch.setattr(sys, "argv", ["export"])


def read_card(text):
    """Front matter as a mapping, and the rest as Markdown tokens."""
    _, matter, body = text.split("---\n", 2)
    return YAML(typ="safe").load(matter), MarkdownIt("commonmark").enable("table").parse(body)


def test_the_folder_holds_the_adapter_on_the_base_and_a_card_whose_code_runs(
    project, tiny_dir, capsys, monkeypatch
):
    model_dir = project / "hidden" / "own"
    shutil.copytree(tiny_dir, model_dir)
    write_json(
        model_dir / "generation_config.json",
        {"do_sample": True, "eos_token_id": 2, "temperature": 0.7, "repetition_penalty": 1.1},
    )
    link_model(model_dir)
    edit_yaml(
        "params.yaml",
        sft__learning_rate=0.05,
        format__max_new_tokens=16,
        data__path=str(project / "rows.json"),
    )
    for stage in JUDGED:
        stage.main()
    write_json(MERGED_DIR / "stale.json", {})
    with monkeypatch.context() as limited:  # nothing is begun that does not fit
        limited.setenv("MEMORY_LIMIT_GIB", "0.0001")
        limited.setattr(export, "merge_adapter", None)
        with pytest.raises(InputError, match="merging the adapter into its base"):
            export.main()
    assert [path.name for path in MERGED_DIR.iterdir()] == ["stale.json"]
    assert {path.name for path in MERGED_DIR.parent.iterdir()} == {
        *("base", "adapter", "dpo", "merged")
    }
    capsys.readouterr()
    export.main()
    printed = capsys.readouterr().out

    assert {path.name for path in MERGED_DIR.iterdir()} == MERGED
    assert {path.name for path in MERGED_DIR.parent.iterdir()} == {
        "base",
        "adapter",
        "dpo",
        "merged",
    }
    for path in MERGED_DIR.iterdir():
        for folder in (project, tiny_dir, Path.home(), ROOT):
            assert str(folder).encode() not in path.read_bytes(), path
    settings = json.loads((MERGED_DIR / "generation_config.json").read_text())
    assert {name: value for name, value in settings.items() if name != "transformers_version"} == {
        "do_sample": False,
        "eos_token_id": [2],
        "pad_token_id": 0,
    }
    assert json.loads((MERGED_DIR / "config.json").read_text())["dtype"] == "bfloat16"

    before = load_file(model_dir / "model.safetensors")
    adapter = load_file(ADAPTER_DIR / "adapter_model.safetensors")
    scale = json.loads((ADAPTER_DIR / "adapter_config.json").read_text())
    for name, merged in load_file(MERGED_DIR / "model.safetensors").items():
        weight = before[name].float()
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in adapter:
            product = adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
            weight = weight + product * (scale["lora_alpha"] / scale["r"])
        assert torch.equal(merged, weight.bfloat16()), name

    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    tokenizer = load_tokenizer(MERGED_DIR)
    ids = torch.tensor([prompt_ids(tokenizer, rows[0]["messages"])])
    cold = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.inference_mode():
        logits = [
            load_merged(MERGED_DIR)(input_ids=ids).logits,
            cold(input_ids=ids).logits.clone(),
        ]
        logits.append(PeftModel.from_pretrained(cold, ADAPTER_DIR)(input_ids=ids).logits)
    assert (logits[0] - logits[2]).abs().max() < 0.02 * (logits[1] - logits[2]).abs().max()

    modelfile = (MERGED_DIR / "Modelfile").read_text()
    assert "FROM .\n" in modelfile
    assert 'SYSTEM """Answer the question from the passages."""' in modelfile
    assert "PARAMETER num_predict 16" in modelfile
    assert f'PARAMETER stop "{tokenizer.eos_token}"' in modelfile
    card = (MERGED_DIR / "README.md").read_text()
    matter, tokens = read_card(card)
    assert (matter["library_name"], matter["pipeline_tag"]) == ("transformers", "text-generation")
    assert "base_model" not in matter
    metrics = json.loads(Path("metrics/evaluation.json").read_text())
    answers = answer_rows(load_merged(MERGED_DIR), tokenizer, rows, 16)
    contexts = {row["id"]: row["anchor"] for row in read_jsonl(Path("data/clean/rows.jsonl"))}
    scored = [
        score_row(row, answer, contexts[row["id"]])
        for row, answer in zip(rows, answers, strict=True)
    ]
    mean = sum(scores["bits_per_byte"] for scores in scored) / len(scored)
    line = next(
        line for line in card.splitlines() if line.startswith("| bits per byte of the reference |")
    )
    assert line in printed
    assert line.split(" | ")[1:4] == [
        f"{value:.3f}"
        for value in (metrics["bits_per_byte"]["zeroshot"], metrics["bits_per_byte"]["sft"], mean)
    ]
    result = metrics["rouge_l"]
    assert (
        f"| ROUGE-L | {result['zeroshot']:.3f} | {result['sft']:.3f} | 1.000 | "
        f"{result['delta']:+.3f} | {result['low']:+.3f} to" in card
    )
    code = {token.info: token.content for token in tokens if token.type == "fence"}
    assert YAML(typ="safe").load(code["yaml"]) == load_params().sft.model_dump()
    assert code["jinja"] == Path("prompts/answer.jinja").read_text()

    monkeypatch.chdir(MERGED_DIR)
    names = {}
    exec(code["python"], names)  # noqa: S102 - it is what a reader of the card runs
    made = names["inputs"]["input_ids"][0].tolist()
    assert made == prompt_ids(tokenizer, names["messages"])
    assert names["output"].shape[1] <= len(made) + 16


STAGE_OF = {SFT: "predict", DPO: "dpo"}


@pytest.fixture(params=[SFT, DPO])
def stubs(request, tmp_path, monkeypatch):
    """A project folder with the least that the export of a system needs; the system."""
    system = request.param
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", "--system", system])
    edit_yaml("params.yaml", dpo__num_train_epochs=float(system == DPO))
    for path in (*export.needed_files(system), BASE_DIR / "manifest.json"):
        write_json(path, {})
    rows = {}
    for split in ("train", "validation"):
        rows[split] = hash_file(formatted_path(split))
    for folder in {ADAPTER_DIR, ADAPTER_DIRS[system]}:
        for name in ("base.json", "adapter_config.json", "adapter_model.safetensors"):
            write_json(folder / name, {})
        made = {"adapter": hash_adapter(folder), "rows": rows, "started_from": hash_adapter(folder)}
        write_json(folder / "made.json", made)
    name = answers_name(system)
    answers = {name: hash_file(predictions_path(name))}
    record = {"adapter": hash_adapter(ADAPTER_DIRS[system]), "answers": answers}
    write_json(answerer_path(name), record)
    write_json(EVALUATION_PATH, {"others": {"dpo": {}}})
    return system


def test_a_missing_file_is_named_with_the_command_that_makes_it(stubs):
    export.check_needed(stubs, load_params())
    adapter = ADAPTER_DIRS[stubs] / "base.json"
    made_by = {BASE_DIR / "manifest.json": "base", adapter: "sft" if stubs == SFT else "dpo"}
    for path, stage in {**made_by, **export.needed_files(stubs)}.items():
        path.rename("moved")
        with pytest.raises(
            InputError, match=rf"^{re.escape(str(path))}: no such file; run `dvc repro {stage}`$"
        ):
            export.main()
        Path("moved").rename(path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_was_changed_since_is_refused(stubs, name):
    (ADAPTER_DIRS[stubs] / name).write_text("other")
    with pytest.raises(
        InputError,
        match=rf"{ADAPTER_DIRS[stubs]}: not as {stubs} wrote it; run `dvc repro {stubs} --force`",
    ):
        export.main()


def test_an_adapter_of_another_base_is_refused(stubs):
    write_json(ADAPTER_DIRS[stubs] / "base.json", {"source": {"path": "other"}})
    with pytest.raises(
        InputError, match=f"{ADAPTER_DIRS[stubs]}: was trained on another base model"
    ):
        export.main()


def test_an_adapter_of_other_rows_or_with_answers_of_another_one_is_refused(stubs):
    folder, name = ADAPTER_DIRS[stubs], answers_name(stubs)
    write_json(formatted_path("train"), {"other": 1})
    other_rows = f"{folder}: trained on other rows than data/formatted/train.jsonl holds; run `dvc"
    with pytest.raises(InputError, match=other_rows):
        export.main()
    record = read_json(answerer_path(name))
    write_json(answerer_path(name), record | {"adapter": "0" * 64})
    with pytest.raises(InputError, match=f"answers were given not with that of {folder}; run"):
        export.main()
    write_json(predictions_path(name), {"other": 1})
    with pytest.raises(InputError, match=rf"{stubs}\.jsonl: not as {stubs} wrote it; run `dvc"):
        export.main()


@pytest.mark.parametrize("stubs", [DPO], indirect=True)
def test_dpo_that_is_off_not_judged_or_of_another_fine_tuned_adapter_is_refused(stubs):
    write_json(EVALUATION_PATH, {})
    with pytest.raises(
        InputError,
        match=r"^metrics/evaluation\.json: does not judge dpo; run `dvc repro evaluate`$",
    ):
        export.main()
    write_json(ADAPTER_DIR / "adapter_config.json", {"other": 1})
    with pytest.raises(
        InputError,
        match=r"^artifacts/dpo/adapter: trained on from another adapter than artifacts/adapter hol",
    ):
        export.main()
    edit_yaml("params.yaml", dpo__num_train_epochs=0)
    with pytest.raises(
        InputError,
        match=r"^params\.yaml: dpo\.num_train_epochs is 0, .* `dvc exp run -S dpo\.num_train_ep",
    ):
        export.main()


@pytest.mark.parametrize(
    ("first", "second", "verdict", "said"),
    [
        (
            "sft",
            "zeroshot",
            -1,
            "**What is shipped is worse than what was measured**, by ROUGE-L, token F1. 0 of 30 "
            "answers",
        ),
        (
            "zeroshot",
            "sft",
            1,
            "no evidence that what is shipped is worse than what was measured**: ROUGE-L went from "
            "0.0",
        ),
        (
            "sft",
            "sft",
            0,
            "(+0.000, interval +0.000 to +0.000). 30 of 30 answers are the same word for word.",
        ),
    ],
)
def test_worse_is_called_worse(judged, first, second, verdict, said):
    predictions = {
        system: {row["id"]: row for row in records} for system, records in judged(rows=30).items()
    }
    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    contexts = {row["id"]: row["anchor"] for row in read_jsonl(Path("data/clean/rows.jsonl"))}
    shipped = export.compare_shipped(
        rows, contexts, predictions[first], predictions[second], load_params().evaluate
    )
    assert shipped["metrics"].keys() == {"rouge_l", "token_f1", "bits_per_byte"}
    assert (
        shipped["metrics"]["rouge_l"]["verdict"],
        shipped["metrics"]["bits_per_byte"]["verdict"],
    ) == (verdict, 0)
    assert said in str(shipped_statement(shipped))


HOSTILE = "# own\ned\n---\nbase_model: x/y | <script>`*_[a](b){{ 1 }}"


@pytest.mark.parametrize(
    "source",
    [{"path": f"/home/me/{HOSTILE.replace('/', '')}"}, {"id": "a_b/C-0.5", "revision": "0" * 40}],
)
def test_what_stands_in_names_and_prompts_does_not_break_the_card(judged, source):
    predictions = {
        system: {row["id"]: row for row in records} for system, records in judged(rows=30).items()
    }
    review.main()
    evaluate.main()
    edit_yaml("params.yaml", data__path=f"/home/me/{HOSTILE.replace('/', '')}.json")
    rows = list(read_jsonl(Path("data/formatted/test.jsonl")))
    contexts = {row["id"]: row["anchor"] for row in read_jsonl(Path("data/clean/rows.jsonl"))}
    params = load_params()
    prompt = f"````\n```\n{HOSTILE}\n"
    messages = [{"role": "user", "content": f'```\n"""{HOSTILE}'}]
    facts = ModelFacts(
        params=params,
        quantization="none",
        metrics=json.loads(Path("metrics/evaluation.json").read_text()),
        manifest={"source": source, "files": {"model.safetensors": {"sha256": "f" * 64}}},
        splits={**json.loads(Path("metrics/format.json").read_text()), "groups": 3},
        prompt=prompt,
        versions={"torch": "2"},
    )
    card = render_card(
        facts,
        {name: {"dtype": "float32", "device": HOSTILE} for name in ("measured", "shipped")},
        export.compare_shipped(
            rows, contexts, predictions["zeroshot"], predictions["sft"], params.evaluate
        ),
        messages,
    )
    matter, tokens = read_card(card)
    assert matter.get("base_model") == source.get("id")
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings == [
        "A model fine-tuned to answer questions from passages",
        "What it is made of",
        "How to ask it",
        "What was measured",
        "Does what is shipped do the same?",
        "Limits",
    ]
    children = [child for token in tokens for child in [token, *(token.children or [])]]
    assert not [
        child for child in children if child.type in ("html_inline", "html_block", "hr", "em_open")
    ]
    links = [child.attrs["href"] for child in children if child.type == "link_open"]
    assert links == ([f"https://huggingface.co/{source['id']}"] if "id" in source else [])
    fences = [token for token in tokens if token.type == "fence"]
    assert [token.info for token in fences] == ["yaml", "jinja", "python"]
    assert fences[1].content == prompt
    assert json.dumps(messages[0]["content"]) in fences[2].content
    assert "/home/me" not in card


def test_an_adapter_that_is_newer_than_its_answers_is_not_shipped(stubs, monkeypatch, caplog):
    write_json(Path("dvc.lock"), {})
    stage, params = STAGE_OF[stubs], load_params()
    monkeypatch.setattr(
        export, "find_stale", lambda: {stage: ["artifacts/adapter"], "cards": ["reports"]}
    )
    with pytest.raises(
        InputError,
        match=rf"{stage} is out of date \(artifacts/adapter\); run `dvc repro`",
    ):
        export.check_needed(stubs, params)
    Path("dvc.lock").unlink()
    export.check_needed(stubs, params)
    assert "there is no dvc.lock" in caplog.text


def test_what_can_not_run_in_one_process_is_said_before_the_merge(project, monkeypatch):
    monkeypatch.setenv("FSDP", "full_shard")
    with pytest.raises(
        InputError, match="FSDP=full_shard in the environment needs several processes"
    ):
        export.main()


def test_what_can_be_merged_and_not_be_asked_is_refused_before_the_merge(project, monkeypatch):
    base.main()
    params, tokens = load_params(), 4000
    row = {"tokens": tokens, "prompt_tokens": tokens - params.format.max_new_tokens}
    merging = predict_merging(read_sizes(BASE_DIR, Adapter(16, "all-linear"))).peak
    monkeypatch.setenv("MEMORY_LIMIT_GIB", str((merging + 10**5) / GIB / (1 - SPARE)))
    with pytest.raises(InputError, match=f"answering a prompt of {row['prompt_tokens']} tokens"):
        export.check_memory(params, [row])
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "8")
    assert export.check_memory(params, [row]) == 8192
