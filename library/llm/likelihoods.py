"""Compute how likely the model finds given answers."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import (
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from library.errors import InputError
from library.llm.architectures import find_decoder, keeps_states, logit_changes
from library.llm.batching import Batching, pad, run_batches
from library.llm.memory.formula import SCORING_HEAD_BYTES

MOST_DIFFERENCE = 1e-4  # nats per token, from the model's own log-likelihoods
CHECKED_TOKENS = 64  # last tokens of a prompt
PARTS = 4  # in which completions are scored, shortest first, to save padding


@torch.no_grad()
def score_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
    batching: Batching = Batching(),
    name: str = "likelihoods",
) -> list[list[float]]:
    """Log-likelihoods in nats of completions after their prompts, summed over each one's tokens.

    A request is a list of (prompt, completion), all as token ids. The prompts' common prefix is
    read only once, unless every request has one completion or a layer keeps states, which rows
    cannot share. Raises InputError if the results would differ from the model's own because its
    architecture changes logits in an unknown way.
    """
    scorer = _Scorer(model, tokenizer.pad_token_id)
    if requests:
        scorer.check_logits(requests[0][0][0])
    alone = all(len(request) == 1 for request in requests)
    again = alone or keeps_states(scorer.base.config)
    shared = [
        0 if again else common_prefix_length([prompt for prompt, _ in request])
        for request in requests
    ]

    def work(batch: list[int]) -> list[list[float]]:
        beginnings = [requests[i][0][0][: shared[i]] for i in batch]
        cache, mask = (None, None) if again else scorer.read(beginnings)
        rests = [
            _Rest(owner, list(prompt[shared[i] :]), list(completion))
            for owner, i in enumerate(batch)
            for prompt, completion in requests[i]
        ]
        order = sorted(range(len(rests)), key=lambda at: rests[at].length)
        sums = [math.nan] * len(rests)
        for part in torch.tensor_split(torch.tensor(order), 1 if alone else min(PARTS, len(order))):
            places = part.tolist()
            scores = scorer.score([rests[at] for at in places], cache, mask)
            for at, score in zip(places, scores, strict=True):
                sums[at] = score
        following = iter(sums)
        return [[next(following) for _ in requests[i]] for i in batch]

    lengths = [
        count + sum(len(prompt) - count + len(completion) for prompt, completion in request)
        for request, count in zip(requests, shared, strict=True)
    ]
    return run_batches(name, lengths, work, batching)


@dataclass(frozen=True)
class _Rest:
    """What follows a common prefix: the rest of a prompt, and its completion.

    `owner` is the prefix's index in the batch.
    """

    owner: int
    prompt: list[int]
    completion: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def ids(self) -> list[int]:
        """All tokens but the last, which predicts nothing."""
        return self.prompt + self.completion[:-1]


class _Scorer:
    """A model split into decoder and head.

    Logits are computed in float32 and only at the completions' positions, at most
    SCORING_HEAD_BYTES at a time: with a vocabulary of 150,000 they take 600 kB per token.
    """

    def __init__(self, model: PreTrainedModel, pad_token_id: int) -> None:
        self.base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.decoder, self.head = find_decoder(self.base), self.base.get_output_embeddings()
        self.scale, self.cap = logit_changes(self.base.config)
        self.device, self.pad_token_id = model.device, pad_token_id
        self.at_once = max(1, SCORING_HEAD_BYTES // (4 * self.head.weight.shape[0]))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits in float32 from the decoder's states, as the model's own forward does."""
        logits: torch.Tensor = self.head(hidden)
        if self.scale != 1:
            logits = logits * self.scale
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.float()

    def check_logits(self, prompt: Sequence[int]) -> None:
        """Raise InputError if the logits of a prompt's last tokens differ from the model's own.

        Both are computed in the same shapes and type, so rounding is not the reason.
        """
        ids = torch.tensor([prompt], device=self.device)
        count = min(CHECKED_TOKENS, len(prompt))
        whole = self.base(input_ids=ids, logits_to_keep=count, use_cache=False).logits
        hidden = self.decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -count:]
        ours, own = (
            logits.float()[0, :-1].log_softmax(-1).gather(1, ids[0, 1 - count :, None])
            for logits in (self.logits(hidden), whole)
        )
        difference = (ours - own).abs().max().item() if count > 1 else 0.0
        if math.isnan(difference):
            raise InputError(
                f"{type(self.base).__name__} gives log-likelihoods that are no numbers"
            )
        if not difference <= MOST_DIFFERENCE:
            raise InputError(
                f"{type(self.base).__name__} changes its logits after the output embedding in a "
                f"way that is not known here: log-likelihoods are off by {difference:.2g} nats a "
                "token; it can't be scored"
            )

    def read(self, beginnings: Sequence[Sequence[int]]) -> tuple[DynamicCache, torch.Tensor]:
        """Keys and values of token ids, padded on the left, and their attention mask."""
        ids, mask = pad(beginnings, self.pad_token_id, "left", self.device)
        cache = DynamicCache(config=self.base.config)
        self.decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        return cache, mask

    def score(
        self, rests: Sequence[_Rest], cache: DynamicCache | None, mask: torch.Tensor | None
    ) -> list[float]:
        """The log-likelihood of each completion after its prefix and the rest of its prompt.

        Without a cache there is no prefix, and the rest is the whole prompt.
        """
        ids, inner = pad([rest.ids for rest in rests], self.pad_token_id, "right", self.device)
        given = {"input_ids": ids, "attention_mask": inner, "use_cache": False}
        if cache is not None and mask is not None:
            owners = torch.tensor([rest.owner for rest in rests], device=mask.device)
            cache = copy.deepcopy(cache)
            cache.batch_select_indices(owners)
            positions = torch.arange(ids.shape[1], device=ids.device)
            given |= {
                "attention_mask": torch.cat([mask[owners], inner], dim=1),
                "position_ids": mask.sum(1)[owners][:, None] + positions,
                "past_key_values": cache,
                "use_cache": True,
            }
        hidden = self.decoder(**given).last_hidden_state
        before = torch.cat(
            [
                hidden[at, len(rest.prompt) - 1 :][: len(rest.completion)]
                for at, rest in enumerate(rests)
            ]
        )
        completions = [token for rest in rests for token in rest.completion]
        tokens = torch.tensor(completions, device=hidden.device)
        losses = [
            cross_entropy(self.logits(part), wanted, reduction="none")
            for part, wanted in zip(
                torch.split(before, self.at_once), torch.split(tokens, self.at_once), strict=True
            )
        ]
        counts = [len(rest.completion) for rest in rests]
        return [-float(part.sum()) for part in torch.split(torch.cat(losses).double(), counts)]


def common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """The number of tokens in all prompts' common prefix.

    One less if that is a whole prompt, because its last token predicts the completion's first.
    """
    count = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return min(count, min(map(len, prompts)) - 1)
