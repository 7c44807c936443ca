"""Rank the test texts for each test question by the embedding model as it is.

Reads data/clean/rows.jsonl, split as `format` splits it. Writes data/rankings/zeroshot.jsonl;
data/rankings/texts.json: the passages of the test contexts, and how many questions and answers are
longer than the model's longest input; and retrievers/embedding.json for `format.retriever`. A
hub's model that is not in the cache is downloaded.
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
    """Rank, and write."""
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
                "the model sees %d tokens; the ends of longer test %s, %d of %d, it does not see",
                *(model.max_length, kind, count, len(test)),
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
