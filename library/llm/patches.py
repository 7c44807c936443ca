"""Where libraries are made to do otherwise by way of their private parts.

Each says what for, and the upstream issue that it waits for. When a pinned version changes, look
here first.
"""

import logging
from functools import partial
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import sdpa_attention
from trl.kernels import ChunkedLogProbFunction, chunked_logprob

from library.llm.memory.formula import PLAIN_HEAD_ROWS
from library.llm.processes import gather_from_all

log = logging.getLogger(__name__)


def repeat_key_value_heads() -> None:
    """Have transformers repeat keys and values that heads share before it calls PyTorch's
    attention.

    Given them shared, cards below compute capability 8.0 have only the kernel that writes out all
    heads x S x S scores. Until huggingface/transformers#48635.
    """
    sdpa_attention.use_gqa_in_sdpa = lambda *_: False


def set_up_fused_head(device: torch.device) -> bool:
    """Say whether TRL's fused head runs as Triton's kernels in all processes, and see that it runs.

    They take Triton and a C compiler. Where they fail on CUDA, plain PyTorch computes the head
    instead, in smaller tiles, of which it makes several copies. TRL itself looks no further than
    whether Triton can be imported.
    """
    if device.type != "cuda":
        return False
    works = chunked_logprob._use_triton(device)
    try:
        hidden = torch.zeros(2, 16, device=device, dtype=torch.float16, requires_grad=True)
        targets = torch.zeros(2, device=device, dtype=torch.long)
        losses = ChunkedLogProbFunction.apply(
            hidden, torch.zeros_like(hidden), None, targets, 1.0, 2
        )
        losses[0].sum().backward()
    # of whatever kind: it is Triton's, its compiler's or the driver's
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().partition("\n")[0]
        log.warning("Triton's kernels do not run here: %s", reason)
        works = False
    if not works:
        log.warning(
            "the loss is computed by plain PyTorch, more slowly; for Triton's kernels install a C "
            "compiler and Python's headers"
        )
        chunked_logprob._TRITON_AVAILABLE = False
        chunked_logprob.TOKEN_CHUNK_SIZE = PLAIN_HEAD_ROWS
    return all(gather_from_all([works]))


def use_one_card(args: TrainingArguments) -> None:
    """One process trains on one card, however many there are; LAUNCHER is for the others.

    transformers would wrap the model in DataParallel, which TRL refuses: huggingface/trl#6836.
    """
    args._n_gpu = min(args.n_gpu, 1)


def keep_adapter_in_float32(model: torch.nn.Module) -> None:
    """Cast what is trained to float32, before the optimizer is made.

    TRL casts the adapter of a quantized model to bfloat16: small updates are lost in it, and
    float16's gradient scaler fails. Until huggingface/trl#4901.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def read_adapters_on_cpu(model: Any) -> None:
    """Have PEFT read an adapter by way of the CPU, such as the best one at the end of training.

    It would read it to the first card, whichever is this process's own: huggingface/peft#3793.
    """
    model.load_adapter = partial(model.load_adapter, torch_device="cpu")


def mark_as_sharded(trainer: Any) -> None:
    """Tell transformers' trainer that the layers are sharded already.

    Then it uses no DDP, which refuses them, and averages the gradients of adapters all the same.
    What this sets is for models that transformers shards itself; it offers nothing for others.
    """
    trainer.is_distributed_loading_by_transformers = True
