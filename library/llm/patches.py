"""Patches that change libraries' behaviour through their private parts.

Each names its purpose and the upstream issue that it waits for. When a pinned version changes, look
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
    """Make transformers repeat shared keys and values before it calls PyTorch's attention.

    Otherwise GPUs below compute capability 8.0 only have the kernel that writes out all heads x S x
    S scores. Until huggingface/transformers#48635.
    """
    sdpa_attention.use_gqa_in_sdpa = lambda *_: False


def set_up_fused_head(device: torch.device) -> bool:
    """Return whether TRL's fused head runs as Triton kernels in all processes.

    The kernels need Triton and a C compiler. If they fail on CUDA, plain PyTorch computes the head
    in smaller tiles, of which it makes several copies. TRL itself only checks that Triton can be
    imported.
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
    # any kind: from Triton, its compiler or the driver
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
    """Train on one GPU in one process, even if there are several; LAUNCHER uses the others.

    transformers would wrap the model in DataParallel, which TRL refuses: huggingface/trl#6836.
    """
    args._n_gpu = min(args.n_gpu, 1)


def keep_adapter_in_float32(model: torch.nn.Module) -> None:
    """Cast trainable weights to float32, before the optimizer is made.

    TRL casts the adapter of a quantized model to bfloat16. That loses small updates, and makes
    float16's gradient scaler fail. Until huggingface/trl#4901.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def read_adapters_on_cpu(model: Any) -> None:
    """Make PEFT read adapters through the CPU, such as the best one at the end of training.

    It would read them to the first GPU in every process: huggingface/peft#3793.
    """
    model.load_adapter = partial(model.load_adapter, torch_device="cpu")


def mark_as_sharded(trainer: Any) -> None:
    """Tell transformers' trainer that the layers are already sharded.

    It then skips DDP, which refuses sharded layers, but still averages the adapters' gradients. The
    flag is meant for models that transformers shards itself; there is no public one for others.
    """
    trainer.is_distributed_loading_by_transformers = True
