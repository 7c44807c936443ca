"""Fine-tune the embedding model on the train rows, and rank the test texts with it.

Reads data/clean/rows.jsonl, split as `format` splits it, and data/rankings/texts.json. Writes
artifacts/embedder/ (all weights, or an adapter), retrievers/tuned.json for `format.retriever`,
reports/embed_history.csv, data/rankings/sft.jsonl, and reports/embed_memory.json: the predicted
and measured memory of one step on the longest texts. A killed run resumes at its last checkpoint.
"""

import logging
import shutil

from library.embed.encoder import save_encoder
from library.embed.memory import check_trainable, plan_encoding, plan_step
from library.embed.opening import open_encoder
from library.embed.passages import cut_context
from library.embed.ranking import Texts
from library.embed.retrieving import write_retriever
from library.embed.rows import read_split_rows
from library.embed.searching import rank_rows
from library.embed.training import (
    build_trainer,
    history_csv,
    longest_texts,
    make_evaluator,
    make_pairs,
    prove_memory,
)
from library.embedding_models import load_embedding_model_file
from library.entry import run_main
from library.files import read_json, write_json, write_jsonl, write_text
from library.llm.checkpoints import checkpoint_dir, find_checkpoint
from library.llm.devices import describe_device
from library.params import load_params
from library.paths import (
    CLEAN_ROWS_PATH,
    EMBED_HISTORY_PATH,
    EMBED_MEMORY_PATH,
    EMBEDDER_DIR,
    RANKED_TEXTS_PATH,
    rankings_path,
)
from library.records import SFT
from library.versions import EMBEDDING_PACKAGES, PACKAGES

log = logging.getLogger(__name__)


def main() -> None:
    """Train, keep the best checkpoint, and rank the test texts with it."""
    params = load_params()
    embed = params.embed
    rows = read_split_rows(params.split)
    model = load_embedding_model_file(embed.model)
    check_trainable(model, embed.lora)
    encoder, folder = open_encoder(model)

    def cut(context: str) -> list[str]:
        return cut_context(encoder, context, embed.passage_characters)

    checkpoints = checkpoint_dir(
        "embed_sft",
        [CLEAN_ROWS_PATH],
        [
            embed.model_dump(exclude={"primary"}),
            params.split.model_dump(),
            model.model_dump(),
            describe_device(),
        ],
        (*PACKAGES, *EMBEDDING_PACKAGES),
    )
    pairs = make_pairs(rows.splits["train"], cut)
    asked = make_pairs(rows.splits["validation"], cut)
    longest = longest_texts(encoder, asked)
    evaluator = make_evaluator(asked, plan_encoding(model, folder, max(map(max, longest))))
    trained = longest_texts(encoder, pairs)
    choices = plan_step(model, folder, embed, trained)
    trainer = build_trainer(encoder, pairs, rows.groups, evaluator, embed, model, checkpoints)
    log.info("%s", ", ".join(f"{len(made)} pairs of {kind}" for kind, made in pairs.items()))
    memory = {**prove_memory(trainer, choices), "longest": max(map(max, trained))}
    if (checkpoint := find_checkpoint(checkpoints)) is not None:
        log.info("resuming from %s", checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    log.info(
        "best validation nDCG@10 %.4f, at step %s of %d",
        *(trainer.state.best_metric, trainer.state.best_global_step, trainer.state.global_step),
    )
    save_encoder(encoder, model, EMBEDDER_DIR)
    write_retriever("tuned", model, EMBEDDER_DIR)
    write_text(EMBED_HISTORY_PATH, history_csv(trainer.state.log_history))
    write_json(EMBED_MEMORY_PATH, memory)
    texts = Texts.from_record(read_json(RANKED_TEXTS_PATH))
    ranked = rank_rows(
        *(encoder, rows.splits["test"], rows.groups, texts, SFT),
        lambda length: plan_encoding(model, folder, length),
    )
    write_jsonl(rankings_path(SFT), ranked)
    shutil.rmtree(checkpoints)
    log.info("%s: the fine-tuned model; %s: its rankings", EMBEDDER_DIR, rankings_path(SFT))


if __name__ == "__main__":
    run_main(main)
