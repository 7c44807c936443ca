"""Embedding models: as their makers meant them, what they find, and what training makes of them."""

import importlib.util
import json
import pickle
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EVALUATE, ROOT, copy_params, edit_yaml, make_rows
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from test_embed_memory import TINY
from transformers import BertConfig, BertModel

from library.corpus.passages import Bm25, rank_passages
from library.embed.converting import convert_pickle
from library.embed.encoder import count_tokens, encode, find_folder, load_encoder
from library.embed.passages import cut_context
from library.embed.ranking import find, gather_texts
from library.embed.rows import read_split_rows
from library.embed.training import (
    NothingTwice,
    PairTrainer,
    choose_passage,
    fold_small_kinds,
    make_pairs,
)
from library.embedding_models import (
    HubEmbeddingModel,
    LocalEmbeddingModel,
    PackagedEmbeddingModel,
    load_embedding_model_file,
)
from library.errors import InputError
from library.files import hash_file, read_json, read_jsonl
from library.params import load_params
from library.paths import EMBED_HISTORY_PATH, EMBEDDER_DIR
from library.verdict.retrieval import judge_rankings, score_found
from stages import clean, embed_evaluate, embed_report, embed_sft, embed_zeroshot

MINILM = load_embedding_model_file("minilm", ROOT / "models/embedding")
# what each model card says stands before a question, and before a passage
PROMPTS = {
    "minilm": ("", ""),
    "all-minilm-l6-v2": ("", ""),
    "bge-m3": ("", ""),
    **dict.fromkeys(
        ("gritlm-7b", "gritlm-8x7b"),
        (
            "<|user|>\nGiven a question, retrieve passages that answer the question\n<|embed|>\n",
            "<|embed|>\n",
        ),
    ),
    "e5-small-v2": ("query: ", "passage: "),
    "multilingual-e5-large-instruct": (
        "Instruct: Given a question, retrieve passages that answer the question\nQuery: ",
        "",
    ),
}


SMALL = TINY.model_copy(update={"query_prompt": ""})


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(MINILM, find_folder(MINILM))


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory):
    """A BERT of one layer and random weights, with MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(find_folder(MINILM) / name, folder)
    return folder


@pytest.fixture
def embedded(tmp_path, monkeypatch, small_dir):
    """A project with the small model and clean rows."""
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text(json.dumps(make_rows(40)))
    path, sha256 = small_dir.as_posix(), hash_file(small_dir / "model.safetensors")
    text = (ROOT / "models/embedding/minilm.yaml").read_text()
    head = text.index("dtype:")
    Path("models/embedding").mkdir(exist_ok=True)
    Path("models/embedding/small.yaml").write_text(f"path: {path}\nsha256: {sha256}\n{text[head:]}")
    edit_yaml("models/embedding/small.yaml", learning_rate=1e-3)
    edit_yaml(
        "params.yaml",
        data__path="rows.json",
        split__on_missed_shares="continue",
        embed__model="small",
        embed__num_train_epochs=2.0,
        embed__batch_size=4,
        embed__mini_batch_size=2,
        embed__eval_steps=4,
        evaluate__draws=1000,
    )
    clean.main()
    return tmp_path


def test_every_model_file_is_valid_and_asks_as_its_card_says():
    folder = ROOT / "models/embedding"
    assert {path.stem for path in folder.glob("*.yaml")} == PROMPTS.keys()
    for name, prompts in PROMPTS.items():
        model = load_embedding_model_file(name, folder)
        assert (model.query_prompt, model.document_prompt) == prompts, name
        assert isinstance(model, PackagedEmbeddingModel if name == "minilm" else HubEmbeddingModel)
    with pytest.raises(InputError, match=r"embed\.model: .*bert\.yaml does not exist; there are: "):
        load_embedding_model_file("bert", folder)


def test_a_model_put_together_from_its_file_is_the_one_its_makers_published(encoder):
    texts = ["Which valve is it?", "A valve of brass, " * 200]
    published = SentenceTransformer(str(find_folder(MINILM)), local_files_only=True)
    assert encoder.max_seq_length == published.max_seq_length == MINILM.max_length
    ours = encode(encoder, texts, "document", "texts")
    assert np.abs(ours - published.encode(texts, normalize_embeddings=True)).max() < 1e-6
    assert np.allclose(np.linalg.norm(ours, axis=1), 1)


def test_a_prompt_stands_before_the_text_and_is_pooled_with_it(small_dir):
    asked = SMALL.model_copy(update={"query_prompt": "query: ", "document_prompt": "passage: "})
    plain = SMALL
    one, other = load_encoder(asked, small_dir), load_encoder(plain, small_dir)
    for kind, prompt in (("query", "query: "), ("document", "passage: ")):
        ours = encode(one, ["a valve"], kind, "x")
        assert np.abs(ours - encode(other, [f"{prompt}a valve"], kind, "x")).max() < 1e-6
        assert np.abs(ours - encode(other, ["a valve"], kind, "x")).max() > 1e-4


def test_files_that_can_not_be_used_are_refused_in_words(tmp_path, small_dir):
    values = SMALL.model_dump()
    other = LocalEmbeddingModel(path=str(small_dir), sha256="0" * 64, **values)
    with pytest.raises(InputError, match=r"has the SHA-256 .*, not the one of its file"):
        find_folder(other)
    absent = PackagedEmbeddingModel(package="no-such-model", folder="no_such_model/x", **values)
    with pytest.raises(
        InputError, match=r"package no-such-model, which is not installed: pip inst"
    ):
        find_folder(absent)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    pickled = LocalEmbeddingModel(path=str(tmp_path), sha256="0" * 64, **values)
    with pytest.raises(InputError, match=r"no model\.safetensors; pickles are not loaded"):
        find_folder(pickled)


def test_a_pickle_of_a_hub_is_converted_once_by_reading_tensors_alone(
    tmp_path, monkeypatch, small_dir
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    hub = tmp_path / "hub"
    shutil.copytree(small_dir, hub)
    weights = load_file(hub / "model.safetensors")
    (hub / "model.safetensors").unlink()
    torch.save(weights, hub / "pytorch_model.bin")
    asked = []

    def snapshot_download(repo, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns))
        return str(hub)

    monkeypatch.setattr("library.embed.encoder.snapshot_download", snapshot_download)
    model = load_embedding_model_file("bge-m3", ROOT / "models/embedding")
    folder = find_folder(model)
    assert folder.parent == tmp_path / "home/converted-pickles"
    assert asked[0][2][-1] == "pytorch_model.bin"
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    monkeypatch.setattr(torch, "load", None)  # the second time nothing is read
    assert find_folder(model) == folder
    monkeypatch.undo()
    (hub / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": print}))
    with pytest.raises(InputError, match=r"pytorch_model\.bin: not a pickle of tensors only"):
        convert_pickle(hub, "pytorch_model.bin")


def test_no_passage_is_longer_than_the_model_sees(encoder):
    context = "The valve (12) is made of brass; " * 60 + "\n\n" + "阀门由黄铜制成。" * 120
    passages = cut_context(encoder, context, 2000)
    assert max(count_tokens(encoder, text, "document") for text in passages) <= 256
    assert "".join("".join(passages).split()) == "".join(context.split())


def test_ranks_are_counted_by_hand():
    assert find([0.1, 0.9, 0.5, 0.5], [True, False, False, True]) == {
        "ranks": [3, 4],
        "first": 3,
        "right": 2,
        "among": 4,
    }
    # relevant at 3 and 4 of two: (1/log2(4) + 1/log2(5)) / (1/log2(2) + 1/log2(3))
    scores = score_found({"ranks": [3, 4], "right": 2})
    assert scores["ndcg_at_10"] == pytest.approx((0.5 + 0.430677) / (1 + 0.630930), abs=1e-5)
    assert scores["mrr_at_10"] == pytest.approx(1 / 3)
    assert (scores["recall_at_1"], scores["recall_at_5"], scores["accuracy_at_1"]) == (0, 1, 0)
    assert set(score_found({"ranks": [], "right": 1}).values()) == {0.0}


def test_metrics_are_those_of_sentence_transformers_evaluator(encoder):
    rows = make_rows(40)
    queries = {f"q{at}": row["query"] for at, row in enumerate(rows)}
    corpus = {f"d{at:02}": row["positive"] for at, row in enumerate(rows)}
    relevant = {f"q{at}": {f"d{at:02}", f"d{at // 2:02}"} for at in range(len(rows))}
    theirs = InformationRetrievalEvaluator(
        queries, corpus, relevant, precision_recall_at_k=[1, 5, 10], name="x"
    )(encoder)
    asked = encode(encoder, list(queries.values()), "query", "q")
    texts = encode(encoder, list(corpus.values()), "document", "d")
    ours = [
        score_found(
            find((texts @ question).astype(float), [key in relevant[name] for key in corpus])
        )
        for name, question in zip(queries, asked, strict=True)
    ]
    for metric in ours[0]:
        name = f"x_cosine_{metric.replace('_at_', '@')}"
        mean = np.mean([scores[metric] for scores in ours])
        assert mean == pytest.approx(float(theirs[name]), abs=1e-6), metric
    assert 0 < np.mean([scores["ndcg_at_10"] for scores in ours]) < 1


def test_bm25_over_many_texts_is_that_of_each_question_alone():
    texts = [row["positive"] for row in make_rows(30)]
    index = Bm25(texts)
    for row in make_rows(10):
        scores = index.score(row["query"])
        order = sorted(range(len(texts)), key=lambda at: (-scores[at], at))
        assert order == rank_passages(texts, row["query"])


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("stuvwxyz")), min_size=2, max_size=60
    ),
    batch_size=st.integers(2, 12),
)
def test_a_batch_holds_no_group_and_no_text_twice_and_an_epoch_each_row_once(rows, batch_size):
    keys = [frozenset((f"group {group}", f"right {text}")) for group, text in rows]
    sampler = NothingTwice(keys, batch_size, seed=7)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(at for batch in batches for at in batch) == list(range(len(rows)))
    for batch in batches:
        held = [key for at in batch for key in keys[at]]
        assert len(set(held)) == len(held)
        assert 0 < len(batch) <= batch_size
    assert list(sampler) == batches == list(NothingTwice(keys, batch_size, seed=7))
    sampler.set_epoch(1)
    assert sorted(map(sorted, sampler)) == sorted(map(sorted, batches))


def test_where_nothing_is_shared_batches_are_full():
    sampler = NothingTwice([frozenset((str(at),)) for at in range(70)], 32, seed=7)
    assert sorted(map(len, sampler)) == [23, 23, 24]
    # one large group beside singles: no more batches than it has rows
    keys = [frozenset(("g" if at < 60 else str(at),)) for at in range(90)]
    assert len(NothingTwice(keys, 32, seed=7)) == 60


def test_what_is_trained_on_are_answers_contrasts_and_the_passage_that_answers():
    rows = [
        {
            "id": "1",
            "context_id": "c",
            "anchor": "One.\n\nThe valve is of brass.",
            "query": "Of what is the valve?",
            "positive": "Brass.",
            "negative": "Steel.",
            **{"also_right": [], "turns": []},
        },
        {
            **{"id": "2", "context_id": "d", "anchor": "", "query": "Why?", "negative": None},
            **{"positive": "So.", "also_right": ["Thus."]},
            "turns": [
                {"role": "user", "content": "It opens."},
                {"role": "assistant", "content": "Yes."},
            ],
        },
    ]
    pairs = make_pairs(rows, lambda context: context.split("\n\n"))
    assert pairs == {
        "answer": [{"id": "2", "query": "It opens.\nWhy?", "positive": "So."}],
        "contrast": [
            {
                **{"id": "1", "query": "Of what is the valve?", "positive": "Brass."},
                "negative": "Steel.",
            }
        ],
        "passage": [
            {
                **{"id": "1", "query": "Of what is the valve?"},
                "positive": "The valve is of brass.",
            }
        ],
    }
    assert choose_passage(rows[0], ["Steel.", "Of brass."]) == "Of brass."
    texts = gather_texts(rows, lambda context: context.split("\n\n"))
    assert (texts.owners, texts.answers) == (["c", "c"], ["Brass.", "So.", "Thus."])


def ranked(system_first, groups=30):
    return [
        {
            "id": f"r{at}",
            "group": f"g{at}",
            "tasks": {"answer": {"ranks": [system_first(at)], "right": 1}},
            "nearer": None,
        }
        for at in range(groups)
    ]


def test_tuning_is_judged_against_the_untuned_model_and_bm25():
    better = {
        "bm25": ranked(lambda at: 4),
        "zeroshot": ranked(lambda at: 2 + at % 3),
        "sft": ranked(lambda at: 1 + at % 2),
    }
    metrics = judge_rankings(better, "answer", EVALUATE)
    assert metrics["verdict"] == 1
    found = metrics["answer"]["ndcg_at_10"]
    assert found["bm25"] == pytest.approx(1 / np.log2(5))
    assert found["sft"] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert "p_holm" not in found
    assert "p_holm" not in metrics["answer"]["mrr_at_10"]  # describes, claims nothing
    beside = metrics["against_bm25"]["answer"]
    assert beside["p_holm"] == beside["p"]  # the only claim beside the primary one
    assert metrics["against_bm25"]["answer"]["verdict"] == 1
    worse = better | {"zeroshot": better["sft"], "sft": better["zeroshot"]}
    assert judge_rankings(worse, "answer", EVALUATE)["verdict"] == -1
    same = better | {"sft": better["zeroshot"]}
    assert judge_rankings(same, "answer", EVALUATE)["verdict"] == 0
    with pytest.raises(InputError, match=r"embed\.primary: no test row has the task 'passage'"):
        judge_rankings(better, "passage", EVALUATE)
    with pytest.raises(InputError, match="other test rows; run `make embed`"):
        judge_rankings(better | {"sft": better["sft"][1:]}, "answer", EVALUATE)


@pytest.mark.parametrize("lora", [None, {"r": 4, "lora_alpha": 64, "lora_dropout": 0.0}])
def test_from_rows_to_a_verdict_and_after_a_kill_to_the_same_bytes(embedded, monkeypatch, lora):
    if lora is not None:
        edit_yaml("params.yaml", embed__lora=lora | {"target_modules": "all-linear"})
    embed_zeroshot.main()
    embed_sft.main()
    embed_evaluate.main()
    embed_report.main()
    card = Path("reports/embedding_card.md").read_text()
    if lora is None:  # an adapter needs its base where its file says, too
        Path("search.py").write_text(card.split("```python\n")[1].split("```")[0])
        runpy.run_path("search.py")
    assert ("It is an adapter" in card) == (lora is not None)
    metrics = read_json(Path("metrics/embedding.json"))
    assert metrics["verdict"] in (-1, 0, 1)
    for task in ("passage", "context", "answer"):
        assert metrics[task]["ndcg_at_10"].keys() >= {"bm25", "zeroshot", "sft", "delta", "p"}
    assert metrics["nearer"]["accuracy"]["n"] > 0
    assert metrics["longer"] == {"questions": 0, "answers": 0}
    for row in read_jsonl(Path("data/rankings/sft.jsonl")):
        for found in row["tasks"].values():
            assert 1 <= found["first"] <= found["among"] - found["right"] + 1
    weights = EMBEDDER_DIR / ("model.safetensors" if lora is None else "adapter_model.safetensors")
    made = (weights, EMBED_HISTORY_PATH, Path("data/rankings/sft.jsonl"))
    first = [path.read_bytes() for path in made]
    model = load_embedding_model_file("small")
    untuned = encode(load_encoder(model, find_folder(model)), ["a valve"], "document", "x")
    tuned = SentenceTransformer(str(EMBEDDER_DIR), local_files_only=True).encode(["a valve"])
    assert np.abs(tuned - untuned).max() > 1e-3
    step, original = [], PairTrainer.training_step

    def stop(self, *args, **kwargs):
        step.append(self.state.global_step)
        if len(step) == 7:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PairTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            embed_sft.main()
    assert list(Path("checkpoints").glob("embed_sft-*/checkpoint-4"))
    embed_sft.main()
    assert [path.read_bytes() for path in made] == first
    assert not list(Path("checkpoints").glob("embed_sft-*"))


def test_without_contexts_only_answers_are_looked_for(embedded):
    rows = [{"query": row["query"], "positive": row["positive"]} for row in make_rows(40)]
    Path("rows.json").write_text(json.dumps(rows))
    edit_yaml("params.yaml", data__columns__anchor=None, data__columns__negative=None)
    clean.main()
    with pytest.raises(
        InputError, match=r"embed\.primary: passage: the test rows have no context; dvc exp"
    ):
        embed_zeroshot.main()
    edit_yaml("params.yaml", embed__primary="answer")
    for stage in (embed_zeroshot, embed_sft, embed_evaluate, embed_report):
        stage.main()
    metrics = read_json(Path("metrics/embedding.json"))
    assert "answer" in metrics
    assert not metrics.keys() & {"passage", "context", "nearer"}


def test_a_wrong_answer_that_training_holds_as_right_is_not_asked_about(embedded):
    rows = make_rows(40)
    before = read_split_rows(load_params().split)
    known = before.splits["train"][0]["positive"]
    asked = before.splits["test"][0]
    for row in rows:
        if row["query"] == asked["query"]:
            row["negative"] = known
    Path("rows.json").write_text(json.dumps(rows))
    clean.main()
    after = {row["id"]: row for row in read_split_rows(load_params().split).splits["test"]}
    assert asked["negative"] is not None
    (found,) = [row for row in after.values() if row["query"] == asked["query"]]
    assert found["negative"] is None


def test_a_contradicting_row_loses_such_a_wrong_answer_too(embedded):
    edit_yaml("params.yaml", split__same_answer_words=1000)  # or the answer would tie the rows
    rows = make_rows(40)
    before = read_split_rows(load_params().split)
    known = before.splits["train"][0]["positive"]
    asked = before.splits["test"][0]
    (row,) = [row for row in rows if row["query"] == asked["query"]]
    row["negative"] = known
    rows.append({**row, "positive": known, "negative": row["positive"]})
    Path("rows.json").write_text(json.dumps(rows))
    clean.main()
    test = read_split_rows(load_params().split).splits["test"]
    found = {row["positive"]: row for row in test if row["query"] == asked["query"]}
    assert {row["contradicts"] for row in found.values()} == {row["id"] for row in found.values()}
    assert found[asked["positive"]]["negative"] is None


def test_layers_that_are_not_there_are_named(embedded):
    embed_zeroshot.main()
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["nosuch"]}
    edit_yaml("params.yaml", embed__lora=lora)
    with pytest.raises(InputError, match=r"params\.yaml: embed\.lora: .*nosuch"):
        embed_sft.main()


def test_wrong_answers_of_one_group_alone_are_left_out_and_rows_of_one_group_refused():
    made = [{"id": str(at), "query": f"q{at}", "positive": f"p{at}"} for at in range(3)]
    pairs = {"answer": made[:2], "contrast": [made[2] | {"negative": "n"}]}
    groups = {"0": "a", "1": "b", "2": "c"}
    assert fold_small_kinds(pairs, groups) == {"answer": made}
    lone = {"answer": made[:1], "contrast": [row | {"negative": "n"} for row in made[1:]]}
    assert fold_small_kinds(lone, groups) == {"contrast": lone["contrast"]}
    with pytest.raises(InputError, match="all train rows are in one group, so that"):
        fold_small_kinds(pairs, dict.fromkeys("012", "a"))


def test_without_the_library_it_says_what_to_install(monkeypatch, small_dir):
    monkeypatch.setitem(importlib.sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"needs sentence-transformers: pip install"):
        load_encoder(MINILM, small_dir)
