"""What chooses the passages of a prompt: BM25, an embedding model, and the tuned one."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_yaml, make_rows
from sentence_transformers import SentenceTransformer
from test_embed_memory import TINY, put_tiny

from commands import ask
from library.corpus.passages import rank_passages, split_passages
from library.embed.memory import EXAMPLE_LORA
from library.embed.retrieving import load_ranker
from library.errors import InputError
from library.files import hash_file, read_jsonl
from library.llm.chat_template import load_tokenizer
from library.llm.prompts import load_prompt
from library.params import load_params
from library.paths import BASE_DIR, EMBEDDER_DIR
from stages import base, clean, embed_sft, embed_zeroshot, format

CHARACTERS = 80


@pytest.fixture
def both(project):
    """The tiny language model's project, with contexts of several passages, and a tiny embedding
    model.
    """
    rows = make_rows(24)
    for number, row in enumerate(rows):
        said = (
            f"Part {number}-{part} is of {'brass' if part % 2 else 'steel'}." for part in range(6)
        )
        row["anchor"] += "\n\n" + "\n\n".join(said)
    Path("rows.json").write_text(json.dumps(rows))
    put_tiny(Path("weights"), "bert")
    values = {"path": "weights", "sha256": hash_file(Path("weights/model.safetensors"))}
    Path("models/embedding").mkdir(exist_ok=True)
    Path("models/embedding/tiny.yaml").write_text(json.dumps(TINY.model_dump() | values))
    edit_yaml(
        "params.yaml",
        format__passage_characters=CHARACTERS,
        embed__model="tiny",
        embed__batch_size=4,
        embed__eval_steps=4,
    )
    base.main()
    clean.main()
    return project


def formatted(retriever):
    edit_yaml("params.yaml", format__retriever=retriever)
    format.main()
    return list(read_jsonl(Path("data/formatted/test.jsonl")))


def test_bm25_chooses_where_nothing_else_is_asked_for(both):
    contexts = {row["id"]: row["anchor"] for row in read_jsonl(Path("data/clean/rows.jsonl"))}
    rows = formatted("bm25")
    for row in rows:
        passages = split_passages(contexts[row["id"]], CHARACTERS)
        assert row["ranked"] == rank_passages(passages, row["question"])
    with pytest.raises(InputError, match=r"retrievers/embedding\.json: .* needs `make embed`"):
        formatted("embedding")


@pytest.mark.parametrize("lora", [None, EXAMPLE_LORA])
def test_an_embedding_model_chooses_as_it_is_and_tuned_and_ask_chooses_the_same(both, lora):
    edit_yaml("params.yaml", embed__lora=lora and lora.model_dump(), embed__learning_rate=0.02)
    embed_zeroshot.main()
    embed_sft.main()
    contexts = {row["id"]: row["anchor"] for row in read_jsonl(Path("data/clean/rows.jsonl"))}
    orders = {name: formatted(name) for name in ("bm25", "embedding", "tuned")}
    tuned = SentenceTransformer(str(EMBEDDER_DIR), local_files_only=True)
    for row in orders["tuned"]:
        passages = split_passages(contexts[row["id"]], CHARACTERS)
        assert len(passages) > 5
        near = tuned.encode(passages) @ tuned.encode([f"query: {row['question']}"])[0]
        assert row["ranked"] == np.argsort(-near, kind="stable").tolist()
    for one, other in (("bm25", "embedding"), ("embedding", "tuned")):
        pairs = zip(orders[one], orders[other], strict=True)
        assert any(a["ranked"] != b["ranked"] for a, b in pairs)

    row = orders["tuned"][0]
    template = load_prompt(Path("prompts/answer.jinja"))
    made = ask.prompt_for(
        row["question"], contexts[row["id"]], load_tokenizer(BASE_DIR), template, load_params()
    )
    assert (made.ranked, made.indices) == (row["ranked"], row["passages"])

    weights = next(EMBEDDER_DIR.glob("*model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(
        InputError, match=r"has changed since retrievers/tuned\.json was written; run"
    ):
        load_ranker("tuned")
    weights.unlink()
    with pytest.raises(InputError, match=r"artifacts/embedder: no tuned embedding model; run"):
        load_ranker("tuned")


def test_passages_that_the_model_does_not_see_whole_are_warned_of(both, caplog):
    edit_yaml("models/embedding/tiny.yaml", max_length=16)
    edit_yaml("params.yaml", embed__passage_characters=50)
    embed_zeroshot.main()
    rank = load_ranker("embedding")
    assert rank(["a valve"], "which?") == [0]
    assert "ignores the ends of" not in caplog.text
    assert rank([], "which?") == []
    rank(["a valve of brass and steel " * 10, "a pump"], "which?")
    assert "sees 16 tokens, and ignores the ends of 1 of 2 passages" in caplog.text
