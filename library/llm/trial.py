"""Try a base model on one row, as the stages will use it, before anything takes hours."""

import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel

from library.errors import InputError, describe_error
from library.llm.adapted_template import ANSWER, CONTEXT, example_messages
from library.llm.batching import Batching, pad
from library.llm.chat_template import load_tokenizer, prompt_completion_ids, read_answer
from library.llm.devices import pick_device
from library.llm.generation import generate_answers
from library.llm.likelihoods import MOST_DIFFERENCE, score_completions
from library.llm.loading import load_model
from library.llm.memory.planning import LongestLengths, make_settings, plan_answering, read_sizes
from library.params import AnyModel, SftParams

log = logging.getLogger(__name__)

NEW_TOKENS = 8
# How much likelier a model finds a sentence than its tokens in reverse, per token. Measured: 2.3
# for the built-in model, at most 0.1 with its vocabulary shuffled (six times), 0.04 for four
# untrained models.
ORDER_NATS = 0.5
ROUNDINGS = 16  # rounding errors of the computing type that the cache may add to a log-likelihood
# The same for the next token beside a longer prompt: a single logit of 30 is off by 16 of them.
PADDED_ROUNDINGS = 64


def try_model(base_dir: Path, model_file: AnyModel, sft: SftParams, name: str) -> None:
    """Ask the prepared model a question, score an answer with and without the cache, and read it
    back.

    Raises InputError, naming the model, if any of it fails. If the model does not fit on this
    machine, that is logged and nothing is tried: `base` may run on a smaller machine than the other
    stages.
    """
    tokenizer = load_tokenizer(base_dir)
    try:
        pairs = [
            prompt_completion_ids(tokenizer, example_messages(context), ANSWER)
            for context in (CONTEXT, "")
        ]
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    read = read_answer(tokenizer, pairs[0][1])
    if read != ANSWER:
        raise InputError(
            f"{name}: its chat template or tokenizer changes an answer: {ANSWER!r} comes back as "
            f"{read!r}"
        )
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    settings = make_settings(model_file, sft, pick_device().type)
    try:
        read_sizes(base_dir, settings.adapter)
    except InputError:
        raise
    except Exception as error:  # any kind: no model can be built from these values
        raise InputError(f"{name}: config.json makes no model: {describe_error(error)}") from error
    try:
        plan_answering(base_dir, settings, LongestLengths(longest, NEW_TOKENS), shown=False)
    except InputError as error:
        log.warning("%s was not tried out, because it cannot run here: %s", name, error)
        return
    model = load_model(base_dir, model_file.quantization)
    try:
        quiet = Batching(shown=False)
        generate_answers(model, tokenizer, [prompt for prompt, _ in pairs], NEW_TOKENS, quiet)
        padded = _difference_by_padding(model, *(prompt for prompt, _ in pairs))
        (cached,) = score_completions(model, tokenizer, [pairs], quiet)
        uncached = [_score(model, prompt, answer) for prompt, answer in pairs]
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:  # any kind: the architecture does not support it
        raise InputError(
            f"{name}: {type(model).__name__} cannot be asked or scored: {describe_error(error)}"
        ) from error
    rounding = torch.finfo(model.dtype).eps
    if not padded <= max(MOST_DIFFERENCE, PADDED_ROUNDINGS * rounding):
        raise InputError(
            f"{name}: {type(model).__name__} answers differently beside a longer prompt, because "
            f"it reads the padding ({padded:.2g} nats); choose another model"
        )
    off = max(
        abs(one - other) / len(answer)
        for one, other, (_, answer) in zip(cached, uncached, pairs, strict=True)
    )
    log.info(
        "%s answers, and scores an answer alike with and without the cache (within %.1e nats a "
        "token)",
        *(name, off),
    )
    if not off <= max(MOST_DIFFERENCE, ROUNDINGS * rounding):
        raise InputError(
            f"{name}: {type(model).__name__} scores an answer differently with and without the "
            f"cache, by {off:.2g} nats a token; it cannot be scored"
        )
    prompt, answer = pairs[0]
    better = (uncached[0] - _score(model, prompt, answer[::-1])) / len(answer)
    if better < ORDER_NATS:
        log.warning(
            "%s finds a sentence hardly likelier than its tokens in reverse (%.2f nats a token): "
            "it is untrained, or the tokenizer or config.json belongs to another model",
            name,
            better,
        )


@torch.no_grad()
def _difference_by_padding(model: PreTrainedModel, longer: list[int], shorter: list[int]) -> float:
    """How much a longer prompt in the batch changes the shorter one's next token, in nats.

    It compares the log-likelihood of that token with and without the longer prompt beside it.
    """
    filler = model.generation_config.pad_token_id
    likelihoods = []
    for prompts in ([shorter], [longer, shorter]):
        ids, mask = pad(prompts, filler, "left", model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        likelihoods.append(output.logits[0][-1].float().log_softmax(-1))
    alone, beside = likelihoods
    token = alone.argmax()
    return float((alone[token] - beside[token]).abs())


@torch.no_grad()
def _score(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    """The log-likelihood of an answer's token ids by the model's own forward pass, in nats."""
    ids = torch.tensor([prompt + answer], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return float(logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).double().sum())
