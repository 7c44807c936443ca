"""Rank the test texts for each test question with the untuned embedding model.

Reads data/clean/rows.jsonl, split as `format` splits it. Writes data/rankings/zeroshot.jsonl;
data/rankings/texts.json (the passages of the test contexts, and how many questions and answers
exceed the model's longest input); and retrievers/embedding.json for `format.retriever`. Downloads a
Hub model that is not in the cache.
"""

import logging

from library.embed.memory import plan_encoding, refuse_training
from library.embed.opening import open_encoder
from library.embed.passages import cut_context
from library.embed.ranking import gather_texts
from library.embed.retrieving import write_retriever
from library.embed.rows import read_split_rows
from library.embed.searching import count_longer, rank_rows
from library.embedding_models import load_embedding_model_file
from library.entry import run_main
from library.errors import InputError
from library.files import write_json, write_jsonl
from library.params import load_params
from library.paths import RANKED_TEXTS_PATH, rankings_path
from library.records import ZEROSHOT

log = logging.getLogger(__name__)


def main() -> None:
    """Rank the test texts and write the rankings."""
    params = load_params()
    rows = read_split_rows(params.split)
    test = rows.splits["test"]
    if params.embed.primary != "answer" and not any(row["anchor"] for row in test):
        raise InputError(
            f"params.yaml: embed.primary: {params.embed.primary}: the test rows have no context; "
            "dvc exp run embedding/dvc.yaml -S embed.primary=answer"
        )
    model = load_embedding_model_file(params.embed.model)
    refuse_training(model, params.embed)
    encoder, folder = open_encoder(model)
    texts = gather_texts(
        test, lambda context: cut_context(encoder, context, params.embed.passage_characters)
    )
    longer = count_longer(encoder, test)
    for kind, count in longer.items():
        if count:
            log.warning(
                "%d of %d test %s are longer than the %d tokens that the model sees: it ignores "
                "their ends",
                *(count, len(test), kind, model.max_length),
            )
    ranked = rank_rows(
        *(encoder, test, rows.groups, texts, ZEROSHOT),
        lambda length: plan_encoding(model, folder, length),
    )
    write_jsonl(rankings_path(ZEROSHOT), ranked)
    write_retriever("embedding", model)
    write_json(RANKED_TEXTS_PATH, {**texts.to_record(), "longer": longer})
    log.info(
        "%s: %d questions among %d passages of %d contexts and %d answers",
        rankings_path(ZEROSHOT),
        *(len(test), len(texts.passages), len(set(texts.owners)), len(texts.answers)),
    )


if __name__ == "__main__":
    run_main(main)
