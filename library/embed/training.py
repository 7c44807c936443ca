"""Train an embedding model on questions and the texts that answer them, with
sentence-transformers.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from sentence_transformers import (
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import PrinterCallback

from library.corpus.passages import rank_passages
from library.embed.encoder import count_longest
from library.embed.memory import EncoderEstimate
from library.embed.rows import ask
from library.embedding_models import EmbeddingModel
from library.errors import InputError
from library.llm.devices import device_name, pick_device, pick_dtype
from library.llm.memory.measuring import (
    OutOfMemoryError,
    free_memory,
    measure_peak,
    name_out_of_memory,
    resident_bytes,
)
from library.llm.trainer_callbacks import MarkComplete, Progress
from library.params import EmbedParams, LoraParams
from library.paths import ADAPTER_WEIGHTS
from library.records import CleanRow
from library.units import gib

log = logging.getLogger(__name__)

METRIC = "eval_validation_cosine_ndcg@10"
LATER = "validation_ndcg@10_later"  # as METRIC, but the later of equal checkpoints wins
HISTORY = {"step": "step", "epoch": "epoch", "loss": "loss", METRIC: "ndcg_at_10"}


def choose_passage(row: CleanRow, passages: Sequence[str]) -> str:
    """The passage of a train row's context that is most like its question and answer.

    It is only used in training, never in evaluation.
    """
    return passages[rank_passages(passages, f"{ask(row)} {row['positive']}")[0]]


def make_pairs(
    rows: Sequence[CleanRow], cut: Callable[[str], Sequence[str]]
) -> dict[str, list[dict[str, str]]]:
    """The training pairs by kind.

    A question with its answer (`answer`), with its answer and a wrong one (`contrast`), and with a
    passage of its context (`passage`).
    """
    pairs: dict[str, list[dict[str, str]]] = {"answer": [], "contrast": [], "passage": []}
    cuts: dict[str, Sequence[str]] = {}
    for row in rows:
        pair = {"id": row["id"], "query": ask(row), "positive": row["positive"]}
        if row["negative"] is None:
            pairs["answer"].append(pair)
        else:
            pairs["contrast"].append({**pair, "negative": row["negative"]})
        if row["anchor"]:
            if row["context_id"] not in cuts:
                cuts[row["context_id"]] = cut(row["anchor"])
            passage = choose_passage(row, cuts[row["context_id"]])
            pairs["passage"].append({**pair, "positive": passage})
    return {kind: made for kind, made in pairs.items() if made}


class NothingTwice(DefaultBatchSampler):  # type: ignore[misc]  # its types are not strict ones
    """Batches in which no two rows share a group, a question or a right text.

    What is right for one row could be right for the other, and would be trained on as wrong. Rows
    that share most are placed first, each into the emptiest batch that it fits, in an order drawn
    from the seed. Every epoch has the same batches in another order, so that their number is known
    and every row occurs once.
    """

    def __init__(self, keys: Sequence[frozenset[str]], batch_size: int, seed: int) -> None:
        super().__init__(range(len(keys)), batch_size, drop_last=False, seed=seed)
        shared = Counter(key for own in keys for key in own)
        drawn = random.Random(seed)
        order = drawn.sample(range(len(keys)), len(keys))
        order.sort(key=lambda at: -max(shared[key] for key in keys[at]))
        self.batches: list[list[int]] = [[] for _ in range(-(-len(keys) // batch_size))]
        held: list[set[str]] = [set() for _ in self.batches]
        for at in order:
            open_to_it = [
                number
                for number, batch in enumerate(self.batches)
                if len(batch) < batch_size and held[number].isdisjoint(keys[at])
            ]
            if not open_to_it:
                open_to_it = [len(self.batches)]
                self.batches.append([])
                held.append(set())
            number = min(open_to_it, key=lambda number: len(self.batches[number]))
            self.batches[number].append(at)
            held[number] |= keys[at]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        yield from random.Random(f"{self.seed}:{self.epoch}").sample(
            self.batches, len(self.batches)
        )


class LaterOfEqual(InformationRetrievalEvaluator):  # type: ignore[misc]
    """The evaluator, which also reports nDCG@10 as LATER, to prefer the later of equal checkpoints.

    With few validation rows, all can be found from the start; otherwise the least trained
    checkpoint would win.
    """

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The metrics by name."""
        metrics: dict[str, float] = super().__call__(model, *args, **kwargs)
        value = metrics[METRIC.removeprefix("eval_")]
        return {**metrics, LATER: value + 1e-9 * max(0, kwargs.get("steps", 0))}


class NdcgProgress(Progress):
    """A progress bar, with a line for each evaluation."""

    measure, title = METRIC, "validation nDCG@10"


class PairTrainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """sentence-transformers' trainer with the batches of NothingTwice.

    `group_of` maps each question and the texts that answer it to their group.
    """

    group_of: Mapping[tuple[str, str], str]

    def _load_best_model(self) -> None:
        """Load the best checkpoint or raise; sentence-transformers would continue without it."""
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        """Load only the adapter if there is one: 4-bit weights cannot be loaded over others."""
        model = self.model[0].auto_model
        if not getattr(model, "_hf_peft_config_loaded", False):
            super()._load_from_checkpoint(checkpoint_path)
            return
        saved = load_file(Path(checkpoint_path) / ADAPTER_WEIGHTS)
        adapter = {name.removeprefix("base_model.model."): part for name, part in saved.items()}
        found = set_peft_model_state_dict(model, adapter)
        if found.unexpected_keys:
            raise InputError(f"{checkpoint_path}: not of this adapter: {found.unexpected_keys[0]}")

    def measure_training_step(self) -> int:
        """The most bytes in tensors during one step on a batch of the longest texts.

        The step leaves no trace: no gradient, no random number drawn. Adam's moments are counted.
        Raises torch.OutOfMemoryError if it does not fit.
        """
        encoder = self.model
        batches = [
            (kind, sorted(rows, key=lambda row: -sum(map(len, row.values()))))
            for kind, rows in self.train_dataset.items()
        ]
        kind, rows = max(batches, key=lambda entry: sum(map(len, entry[1][0].values())))
        collated = self.data_collator(
            [{**row, "dataset_name": kind} for row in rows[: self.args.train_batch_size]]
        )
        trained = [value for value in encoder.parameters() if value.requires_grad]
        on_cuda = encoder.device.type == "cuda"
        resident = 0 if on_cuda else resident_bytes(encoder)

        def step() -> None:
            moments = [torch.zeros_like(value) for value in trained for _ in range(2)]
            with self.compute_loss_context_manager():
                loss = self.compute_loss(encoder, self._prepare_inputs(collated))
            loss.backward()
            del moments

        encoder.train()
        with torch.random.fork_rng([encoder.device] if on_cuda else []):
            try:
                return resident + measure_peak(encoder.device, step)
            finally:
                encoder.zero_grad(set_to_none=True)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Do nothing: the callback would encode texts for a card that is not kept."""

    def get_batch_sampler(
        self, dataset: Dataset, batch_size: int, *_: Any, seed: int = 0, **__: Any
    ) -> NothingTwice:
        """The sampler for one kind of pairs."""
        keys = [
            frozenset((self.group_of[query, right], f"query: {query}", f"right: {right}"))
            for query, right in zip(dataset["query"], dataset["positive"], strict=True)
        ]
        sampler = NothingTwice(keys, batch_size, seed)
        if 2 * len(keys) < batch_size * len(sampler) and len(sampler) > 1:
            log.warning(
                "batches have %.1f rows instead of %d, because many rows share a group, a question "
                "or a right text; smaller batches teach less",
                *(len(keys) / len(sampler), batch_size),
            )
        return sampler


def fold_small_kinds(
    pairs: Mapping[str, Sequence[Mapping[str, str]]], groups: Mapping[str, str]
) -> dict[str, Sequence[Mapping[str, str]]]:
    """The pairs by kind, without kinds whose pairs are all in one group.

    Such a kind has no wrong texts to learn from. Dropped `contrast` pairs stay as `answer` pairs.
    Raises InputError if nothing is left.
    """
    kinds = dict(pairs)
    contrast = kinds.get("contrast", ())
    if contrast and len({groups[pair["id"]] for pair in contrast}) < 2:
        log.warning("the wrong answers of train rows are all in one group and are not trained on")
        plain = [{k: v for k, v in pair.items() if k != "negative"} for pair in contrast]
        kinds["answer"] = [*kinds.get("answer", ()), *plain]
        del kinds["contrast"]
    small = [kind for kind, made in kinds.items() if len({groups[pair["id"]] for pair in made}) < 2]
    if len(small) == len(kinds):
        raise InputError(
            "embed_sft: all train rows are in one group, so that their texts cannot be told apart; "
            "add rows with other contexts and answers"
        )
    for kind in small:
        log.warning(
            "%s: all %d train rows are in one group and are not trained on", kind, len(kinds[kind])
        )
        del kinds[kind]
    return kinds


def make_evaluator(
    pairs: Mapping[str, Sequence[Mapping[str, str]]], batch_size: int
) -> InformationRetrievalEvaluator:
    """The evaluator: nDCG@10 of validation questions among the validation rows' answers and
    passages.

    Texts are encoded in batches of `batch_size`.
    """
    corpus: dict[str, str] = {}
    relevant: dict[str, set[str]] = {}
    texts: dict[str, str] = {}
    queries: dict[str, str] = {}
    for made in pairs.values():
        for pair in made:
            queries[pair["id"]] = pair["query"]
            key = texts.setdefault(pair["positive"], f"text {len(texts)}")
            corpus[key] = pair["positive"]
            relevant.setdefault(pair["id"], set()).add(key)
    return LaterOfEqual(
        queries=queries,
        corpus=corpus,
        relevant_docs=relevant,
        batch_size=batch_size,
        name="validation",
        write_csv=False,
    )


def ranking_loss(
    encoder: Any, batch_size: int, at_once: int
) -> MultipleNegativesRankingLoss | CachedMultipleNegativesRankingLoss:
    """The loss of each question against all texts of its batch.

    With mini-batches smaller than the batch it uses cached gradients (Gao et al., Scaling Deep
    Contrastive Learning Batch Size, 2021).
    """
    if at_once >= batch_size:
        return MultipleNegativesRankingLoss(encoder)
    return CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=at_once)


def prove_memory(trainer: PairTrainer, choices: Mapping[int, EncoderEstimate]) -> dict[str, Any]:
    """Give a trainer the loss with the largest mini-batch for which a step on the longest texts
    fits; returns a record of that step, with its memory in MB.

    Raises InputError if none of the choices fits.
    """
    too_large: list[int] = []
    for at_once, predicted in choices.items():
        trainer.loss = ranking_loss(trainer.model, trainer.args.train_batch_size, at_once)
        try:
            with name_out_of_memory(trainer.model.device):
                peak = trainer.measure_training_step()
        except OutOfMemoryError:
            log.warning("out of memory before the first step with mini-batch size %d", at_once)
            too_large.append(at_once)
            free_memory()
            continue
        log.info(
            "measured on the longest texts: a step with mini-batch size %d takes %s",
            *(at_once, gib(peak)),
        )
        return {
            "batch_size": trainer.args.train_batch_size,
            "device": device_name(trainer.model.device),
            "measured": int(float(f"{peak / 1e6:.2g}")),  # the rest differs between runs
            "mini_batch_size": at_once,
            "out_of_memory": too_large,
            "predicted": predicted.record(),
        }
    raise InputError(
        f"embed_sft: out of memory with mini-batch size {too_large[-1]}; lower max_length in the "
        "model's file, or set embed.mini_batch_size to null"
    )


def longest_texts(
    encoder: Any, pairs: Mapping[str, Sequence[Mapping[str, str]]]
) -> list[list[int]]:
    """For each kind of pairs, the tokens of the longest question, right text and wrong text, if
    any.
    """
    lengths = []
    for made in pairs.values():
        kind = [count_longest(encoder, [pair["query"] for pair in made], [])]
        for name in ("positive", "negative"):
            texts = [pair[name] for pair in made if name in pair]
            if texts:
                kind.append(count_longest(encoder, [], texts))
        lengths.append(kind)
    return lengths


def add_adapter(encoder: Any, lora: LoraParams) -> None:
    """Add a float32 adapter to a model. Raises InputError if its layers do not exist."""
    layers = lora.target_modules
    if layers == "all-linear":  # by name: transformers would adapt the experts of a mixture, too
        named = encoder[0].auto_model.named_modules()
        linear = (name for name, module in named if isinstance(module, torch.nn.Linear))
        layers = sorted({name.split(".")[-1] for name in linear})
    config = LoraConfig(
        task_type="FEATURE_EXTRACTION", **{**lora.model_dump(), "target_modules": layers}
    )
    try:
        encoder.add_adapter(config)
    except ValueError as error:
        raise InputError(f"params.yaml: embed.lora: {error}") from error
    for weight in encoder.parameters():
        if weight.requires_grad:  # those of 4-bit layers come in 16 bits
            weight.data = weight.data.float()


def checkpoint_gradients(encoder: Any) -> None:
    """Turn on gradient checkpointing: keep one tensor per layer, and compute the rest again."""
    model = encoder[0].auto_model
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # needed only by the other kind of checkpointing, and BERT's embeddings fail on them
    model.disable_input_require_grads()


def build_trainer(
    encoder: Any,
    pairs: Mapping[str, Sequence[Mapping[str, str]]],
    groups: Mapping[str, str],
    evaluator: InformationRetrievalEvaluator,
    params: EmbedParams,
    model: EmbeddingModel,
    output_dir: Path,
) -> PairTrainer:
    """Build a trainer with its data; `prove_memory` sets its loss.

    Training ends with the weights of the best validation nDCG. Raises InputError if a kind of pairs
    has too few rows.
    """
    pairs = fold_small_kinds(pairs, groups)
    if params.lora is not None:
        torch.manual_seed(params.seed)
        add_adapter(encoder, params.lora)
    if model.gradient_checkpointing:
        checkpoint_gradients(encoder)
    datasets = DatasetDict(
        {
            kind: Dataset.from_list([{k: v for k, v in pair.items() if k != "id"} for pair in made])
            for kind, made in pairs.items()
        }
    )
    group_of = {
        (pair["query"], pair["positive"]): groups[pair["id"]]
        for made in pairs.values()
        for pair in made
    }

    device = pick_device()
    dtype = pick_dtype(device)
    prompts = {"query": encoder.prompts["query"]} | dict.fromkeys(
        ("positive", "negative"), encoder.prompts["document"]
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output_dir),
        seed=params.seed,
        num_train_epochs=params.num_train_epochs,
        per_device_train_batch_size=params.batch_size,
        learning_rate=params.learning_rate or model.learning_rate,
        warmup_steps=params.warmup_steps,
        weight_decay=params.weight_decay,
        prompts={name: prompt for name, prompt in prompts.items() if prompt} or None,
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        eval_strategy="steps",
        eval_steps=params.eval_steps,
        save_strategy="steps",
        save_steps=params.eval_steps,
        save_total_limit=3,
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{LATER}",
        greater_is_better=True,
        logging_steps=max(1, params.eval_steps // 2),
        report_to="none",
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
    )
    patience = params.early_stopping_patience
    trainer = PairTrainer(
        model=encoder,
        args=arguments,
        train_dataset=datasets,
        loss=ranking_loss(encoder, params.batch_size, params.batch_size),
        evaluator=evaluator,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=patience), MarkComplete()],
    )
    trainer.group_of = group_of
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(NdcgProgress)
    return trainer


def history_csv(log_history: Sequence[Mapping[str, Any]]) -> str:
    """The trainer's log as CSV: step, epoch, loss and validation nDCG, without times."""
    entries = pd.DataFrame(list(log_history)).reindex(columns=list(HISTORY)).rename(columns=HISTORY)
    merged = entries.groupby("step", as_index=False).first()
    return str(merged.dropna(subset=["loss", "ndcg_at_10"], how="all").to_csv(index=False))
