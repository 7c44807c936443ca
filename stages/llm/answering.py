"""Ask the model: greedy answers, and how likely it finds given answers.

Batches are sorted by length, so little is padding; they are spread over the processes, and each is kept once it is done, so that
a killed stage goes on where it was.
"""

import copy
import gc
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from stages.llm.checkpoints import append_line, read_lines
from stages.llm.loading import pick_device
from stages.llm.memory import SCORING_HEAD_BYTES, count_ooms, ran_out_of_memory
from stages.llm.processes import from_all, from_main, processes
from stages.llm.prompts import hash_ids, prompt_completion_ids, prompt_ids
from stages.llm.sharding import takes_same_steps
from stages.run import InputError

log = logging.getLogger(__name__)

WAYS = {"question": "messages", "no_question": "messages_no_question", "bare": "messages_bare"}


@dataclass(frozen=True)
class Batching:
    """How much goes through the model at once, and where what is done is kept; neither changes a result beyond rounding."""

    tokens: int = 8192  # of a batch, padding included
    kept_dir: Path | None = None


def batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, each of at most `limit` tokens when padded to its longest member.

    A member that is longer than the limit makes a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > limit:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def run_batches(
    name: str,
    lengths: Sequence[int],
    work: Callable[[list[int]], list[Any]],
    batching: Batching,
) -> list[Any]:
    """What `work` makes of each index, in their order; it takes a batch of indices and gives a JSON value for each.

    Every process does its share of the batches, or all of them together where layers are sharded, and returns everything. What
    stands under `name` in the batching's `kept_dir` is not done again. A batch that is too much for the device's memory is halved.
    Raises InputError where one row alone is too much.
    """
    if not lengths:
        return []
    state, device = processes(), pick_device()
    together = takes_same_steps()
    todo = list(batches(lengths, batching.tokens))
    padded = sum(len(batch) * lengths[batch[0]] for batch in todo)
    if len(lengths) > 1:
        log.info(
            "%s: %d rows, %d at most in a batch, %.0f%% padding",
            name,
            len(lengths),
            max(map(len, todo)),
            100 - 100 * sum(lengths) / padded,
        )

    def attempt(batch: list[int]) -> list[Any]:
        before = count_ooms(device)
        try:
            return work(batch)
        except RuntimeError as error:  # PyTorch's own, and those of the libraries that it calls
            if not ran_out_of_memory(error, device, before):
                raise
            if len(batch) == 1 or together:
                rows, remedy = f"{len(batch)} rows", "lower TOKENS_PER_BATCH in the environment"
                if len(batch) == 1:
                    rows = "one row"
                    remedy = "lower format.max_length, or set CUDA_VISIBLE_DEVICES to nothing and it is computed on the CPU"
                raise InputError(f"{name}: out of memory with {rows} of {lengths[batch[0]]} tokens; {remedy}") from None
        # here, not above: the exception holds on to what was computed
        gc.collect()
        torch.cuda.empty_cache()
        log.warning("%s: out of memory with %d rows at once, going on with half as many", name, len(batch))
        half = len(batch) // 2
        return attempt(batch[:half]) + attempt(batch[half:])

    done: dict[int, Any] = {}
    kept_dir = batching.kept_dir
    if kept_dir is not None and state.is_main_process:
        for path in kept_dir.glob(f"{name}-*.jsonl"):
            for indices, results in read_lines(path):
                done.update(zip(indices, results, strict=True))
    done = from_main(done)
    if done:
        log.info("%s: %d rows were done before", name, len(done))
    mine: dict[int, Any] = {}
    # a batch is done whole or not at all: in another batch, a row would be rounded otherwise
    missing = [batch for batch in todo if not all(index in done for index in batch)]
    share = missing if together else missing[state.process_index :: state.num_processes]
    with tqdm(desc=name, total=sum(map(len, share)), unit="row", mininterval=2, disable=not state.is_main_process) as progress:
        for batch in share:
            results = attempt(batch)
            mine.update(zip(batch, results, strict=True))
            if kept_dir is not None and (state.is_main_process or not together):
                append_line(kept_dir / f"{name}-{state.process_index}.jsonl", [batch, results])
            progress.update(len(batch))
    done.update(from_all(list(mine.items())))
    return [done[index] for index in range(len(lengths))]


def pad(rows: Sequence[Sequence[int]], filler: int, side: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and attention mask, each (rows, longest), padded on the `side` "left" or "right"."""
    width = max(map(len, rows))
    gaps = [[filler] * (width - len(row)) for row in rows]
    ids = [gap + list(row) if side == "left" else list(row) + gap for row, gap in zip(rows, gaps, strict=True)]
    ones = [
        [0] * len(gap) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(gap)
        for row, gap in zip(rows, gaps, strict=True)
    ]
    return torch.tensor(ids, device=device), torch.tensor(ones, device=device)


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batching: Batching = Batching(),
    name: str = "answers",
) -> list[dict[str, Any]]:
    """Greedy answers to prompts given as token ids, in their order.

    Each is a mapping with `prediction`, `finish_reason` ("stop" at an end-of-turn token, "length" where `max_new_tokens` cut it
    off) and `generated_tokens`, the end-of-turn token included.
    """
    ends = set(model.generation_config.eos_token_id)

    def work(batch: list[int]) -> list[dict[str, Any]]:
        ids, mask = pad([prompts[i] for i in batch], tokenizer.pad_token_id, "left", model.device)
        outputs = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, synced_gpus=takes_same_steps())
        answers = []
        for output in outputs[:, ids.shape[1] :].tolist():
            end = next((i for i, token in enumerate(output) if token in ends), None)
            answers.append(
                {
                    "prediction": tokenizer.decode(output[:end], skip_special_tokens=True).strip(),
                    "finish_reason": "length" if end is None else "stop",
                    "generated_tokens": len(output) if end is None else end + 1,
                }
            )
        return answers

    return run_batches(name, [len(prompt) + max_new_tokens for prompt in prompts], work, batching)


@torch.no_grad()
def score_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
    batching: Batching = Batching(),
    name: str = "likelihoods",
) -> list[list[float]]:
    """Log-likelihoods in nats of completions after their prompts, all as token ids, summed over a completion's tokens.

    A request is a list of (prompt, completion); what its prompts have in common at their beginning is read once. Logits are
    computed for the completions' positions alone, SCORING_HEAD_BYTES of them at most at a time and in float32: a vocabulary of
    150,000 makes 600 kB for each token. Raises InputError where an architecture does more to its logits than the output embedding.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    at_once = max(1, SCORING_HEAD_BYTES // (4 * head.weight.shape[0]))
    for request in requests[:1]:
        ids = torch.tensor([request[0][0]], device=model.device)
        whole = base(input_ids=ids, logits_to_keep=1, use_cache=False).logits[0, -1].float()
        headed = head(decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -1:])[0, -1].float()
        if (whole.log_softmax(-1) - headed.log_softmax(-1)).abs().max() > 0.1:
            raise InputError(f"{type(base).__name__} changes its logits after the output embedding; it can't be scored here")

    def work(batch: list[int]) -> list[list[float]]:
        ids, mask = pad([requests[i][0][0][: shared[i]] for i in batch], tokenizer.pad_token_id, "left", model.device)
        cache = DynamicCache(config=base.config)
        decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        # the rest of each prompt, and its completion but for the last token, which nothing follows; shortest first, in four parts
        rests = [
            (row, list(prompt[shared[i] :]), list(completion)) for row, i in enumerate(batch) for prompt, completion in requests[i]
        ]
        order = sorted(range(len(rests)), key=lambda at: len(rests[at][1]) + len(rests[at][2]))
        sums = [math.nan] * len(rests)
        for part in torch.tensor_split(torch.tensor(order), min(4, len(order))):
            for at, total in zip(part.tolist(), score_rests([rests[at] for at in part.tolist()], cache, mask), strict=True):
                sums[at] = total
        following = iter(sums)
        return [[next(following) for _ in requests[i]] for i in batch]

    def score_rests(rests: Sequence[tuple[int, list[int], list[int]]], cache: DynamicCache, mask: torch.Tensor) -> Iterator[float]:
        owners = torch.tensor([row for row, _, _ in rests], device=mask.device)
        cache = copy.deepcopy(cache)
        cache.batch_select_indices(owners)
        ids, inner = pad([rest + completion[:-1] for _, rest, completion in rests], tokenizer.pad_token_id, "right", mask.device)
        hidden = decoder(
            input_ids=ids,
            attention_mask=torch.cat([mask[owners], inner], dim=1),
            position_ids=mask.sum(1)[owners][:, None] + torch.arange(ids.shape[1], device=ids.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        before = torch.cat([hidden[at, len(rest) - 1 :][: len(completion)] for at, (_, rest, completion) in enumerate(rests)])
        tokens = torch.tensor([token for _, _, completion in rests for token in completion], device=hidden.device)
        losses = [
            cross_entropy(head(part).float(), wanted, reduction="none")
            for part, wanted in zip(torch.split(before, at_once), torch.split(tokens, at_once), strict=True)
        ]
        for losses_of_one in torch.split(torch.cat(losses).double(), [len(completion) for _, _, completion in rests]):
            yield -float(losses_of_one.sum())

    shared = [common_beginning([prompt for prompt, _ in request]) for request in requests]
    lengths = [
        count + sum(len(prompt) - count + len(completion) for prompt, completion in request)
        for request, count in zip(requests, shared, strict=True)
    ]
    return run_batches(name, lengths, work, batching)


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with alike, less one where that is a whole prompt: what follows it is asked of its last."""
    count = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return min(count, min(map(len, prompts)) - 1)


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    batching: Batching = Batching(),
    name: str = "questions",
) -> list[dict[str, Any]]:
    """What a model answers to the rows' questions without any passage: a mapping a row, as `generate_answers` makes them."""
    prompts = [prompt_ids(tokenizer, row["messages_no_context"]) for row in rows]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens, batching, f"{name}-answers")
    return [
        {"id": row["id"], "prompt_hash": hash_ids(prompt), **answer}
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]


def answer_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    batching: Batching = Batching(),
    name: str = "rows",
) -> list[dict[str, Any]]:
    """What a model answers to formatted rows, and how likely it finds their positive and negative.

    Likelihoods stand under `likelihood.ANSWER.WAY`, WAY being `question` (passages and question), `no_question` (passages) or
    `bare` (neither): `sum` in nats, `tokens` and `bytes`. Raises InputError where a prompt's tokens are not those that
    `format` counted.
    """
    prompts = [prompt_ids(tokenizer, row["messages"]) for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        if hash_ids(prompt) != row["prompt_hash"]:
            raise InputError(f"row {row['id']}: the prompt is not the one that format wrote; run `dvc repro`")
    # with and without the question a prompt begins with the same passages; bare, it shares next to nothing with them
    wanted = [
        [(index, answer, way) for way in ways for answer in ("positive", "negative") if row[answer] is not None]
        for index, row in enumerate(rows)
        for ways in (("question", "no_question"), ("bare",))
    ]
    wanted = [together for together in wanted if together]
    requests = [
        [prompt_completion_ids(tokenizer, rows[index][WAYS[way]], rows[index][answer]) for index, answer, way in together]
        for together in wanted
    ]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens, batching, f"{name}-answers")
    scores = score_completions(model, tokenizer, requests, batching, f"{name}-likelihoods")
    records = [
        {
            **{key: row[key] for key in ("id", "group", "pair", "prompt_hash", "prompt_tokens", "passages")},
            **answer,
            "likelihood": {"positive": {}, "negative": None if row["negative"] is None else {}},
        }
        for row, answer in zip(rows, answers, strict=True)
    ]
    for together, request, sums in zip(wanted, requests, scores, strict=True):
        for (index, answer, way), (_, completion), score in zip(together, request, sums, strict=True):
            if not math.isfinite(score):
                raise InputError(f"row {rows[index]['id']}: the likelihood of its {answer} is {score}")
            size = len(rows[index][answer].encode())
            records[index]["likelihood"][answer][way] = {"sum": score, "tokens": len(completion), "bytes": size}
    return records
