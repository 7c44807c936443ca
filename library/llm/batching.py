"""Run rows through the model in batches that fit into memory.

Batches are sorted by length, to save padding, and spread over the processes. Each is kept once it
is done, so that a killed stage resumes there.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from library.errors import InputError
from library.files import write_json
from library.llm.checkpoints import append_line, read_lines
from library.llm.devices import pick_device
from library.llm.memory.measuring import OutOfMemoryError, free_memory, name_out_of_memory
from library.llm.processes import broadcast_from_main, gather_from_all, processes
from library.llm.sharding import takes_same_steps
from library.progress import SECONDS_BETWEEN_UPDATES

log = logging.getLogger(__name__)

SECONDS = "-seconds.json"  # file name suffix for the time per row, next to the kept results


@dataclass(frozen=True)
class Batching:
    """How much goes through the model at once, and where finished batches are kept.

    Neither changes a result beyond rounding.
    """

    tokens: int = 8192  # of a batch, padding included
    kept_dir: Path | None = None
    shown: bool = True  # whether to show progress and log batch sizes


def make_batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, each of at most `limit` tokens with padding.

    A row longer than the limit makes a batch of its own.
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
    """Run `work` on batches of indices, and return a result for each index, in order.

    `work` maps a batch of indices to one JSON value each. Each process does its share of the
    batches, or all of them together if layers are sharded; every process returns everything.
    Batches kept under `name` in `kept_dir` are not repeated. A batch that runs out of device memory
    is halved. Raises InputError if one row alone is too much.
    """
    if not lengths:
        return []
    state, together = processes(), takes_same_steps()
    todo = list(make_batches(lengths, batching.tokens))
    if batching.shown:
        _log_batches(name, lengths, todo)
    kept_dir = batching.kept_dir
    done = _read_done(name, kept_dir)
    # a batch is repeated as a whole: in another batch, its rows would be rounded differently
    missing = [batch for batch in todo if not all(index in done for index in batch)]
    share = missing if together else missing[state.process_index :: state.num_processes]
    mine: dict[int, Any] = {}
    start = time.perf_counter()
    with tqdm(
        desc=name.replace("-", " "),
        total=sum(map(len, share)),
        unit="",
        mininterval=SECONDS_BETWEEN_UPDATES,
        disable=not (share and batching.shown and state.is_main_process),
    ) as progress:
        for batch in share:
            results = _halve_until_it_fits(name, batch, lengths, work)
            mine.update(zip(batch, results, strict=True))
            if kept_dir is not None and (state.is_main_process or not together):
                append_line(kept_dir / f"{name}-{state.process_index}.jsonl", [batch, results])
            progress.update(len(batch))
    done.update(gather_from_all(list(mine.items())))
    asked = sum(map(len, missing))
    if kept_dir is not None and asked and state.is_main_process:
        seconds = (time.perf_counter() - start) / asked
        write_json(kept_dir / f"{name}{SECONDS}", {"seconds_per_row": round(seconds, 3)})
    return [done[index] for index in range(len(lengths))]


def _log_batches(name: str, lengths: Sequence[int], batches: Sequence[list[int]]) -> None:
    if len(lengths) > 1:
        padded = sum(len(batch) * lengths[batch[0]] for batch in batches)
        padding = 100 - 100 * sum(lengths) / padded
        log.info(
            "%s: %d in batches of up to %d, %.0f%% padding",
            *(name.replace("-", " "), len(lengths), max(map(len, batches)), padding),
        )


def _read_done(name: str, kept_dir: Path | None) -> dict[int, Any]:
    """The results of a killed run by index; the main process reads them for all."""
    done: dict[int, Any] = {}
    if kept_dir is not None and processes().is_main_process:
        for path in kept_dir.glob(f"{name}-*.jsonl"):
            for indices, results in read_lines(path):
                done.update(zip(indices, results, strict=True))
    done = dict(broadcast_from_main(done))
    if done:
        log.info("%s: resuming, %d are done", name.replace("-", " "), len(done))
    return done


def _halve_until_it_fits(
    name: str, batch: list[int], lengths: Sequence[int], work: Callable[[list[int]], list[Any]]
) -> list[Any]:
    try:
        with name_out_of_memory(pick_device()):
            return work(batch)
    except OutOfMemoryError:
        if len(batch) == 1 or takes_same_steps():
            rows, remedy = f"{len(batch)} rows", "lower TOKENS_PER_BATCH in the environment"
            if len(batch) == 1:
                rows = "one row"
                remedy = (
                    "lower format.max_length, or set CUDA_VISIBLE_DEVICES to nothing and it is "
                    "computed on the CPU"
                )
            raise InputError(
                f"{name}: out of memory with {rows} of {lengths[batch[0]]} tokens; {remedy}"
            ) from None
    free_memory()
    log.warning(
        "%s: out of memory with batch size %d; continuing with half of it", name, len(batch)
    )
    half = len(batch) // 2
    return [
        result
        for part in (batch[:half], batch[half:])
        for result in _halve_until_it_fits(name, part, lengths, work)
    ]


def pad(
    rows: Sequence[Sequence[int]], filler: int, side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and attention mask, each (rows, longest), padded on `side`: "left" or "right"."""
    width = max(map(len, rows))
    gaps = [[filler] * (width - len(row)) for row in rows]
    ids = [
        gap + list(row) if side == "left" else list(row) + gap
        for row, gap in zip(rows, gaps, strict=True)
    ]
    ones = [
        [0] * len(gap) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(gap)
        for row, gap in zip(rows, gaps, strict=True)
    ]
    return torch.tensor(ids, device=device), torch.tensor(ones, device=device)
