"""Shard the frozen layers of a model that is too large for one GPU (PyTorch's FSDP2).

`FSDP` in the environment turns it on: `full_shard` spreads each layer's weights over the processes;
`offload` keeps them in host memory, with the embeddings unless the output head shares them. A layer
is gathered on the GPU when it computes. LoRA adapters, the head and other embeddings stay whole in
every process.
"""

import logging
import os
from typing import Literal

import torch
import torch.distributed as dist
from peft import PeftModel
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from library.errors import InputError
from library.llm.processes import processes
from library.units import gib

log = logging.getLogger(__name__)

Sharding = Literal["full_shard", "offload"]


def find_sharding(count: int | None = None) -> Sharding | None:
    """The value of FSDP in the environment, checked for `count` processes (default: those running).

    Raises InputError if the value is unknown, or if `full_shard` has only one process.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise InputError(
            "the accelerate config turns FSDP on; turn it off there, and set FSDP=full_shard in "
            "the environment"
        )
    value = os.environ.get("FSDP", "")
    if value == "":
        return None
    if value not in ("full_shard", "offload"):
        raise InputError(f"FSDP in the environment: expected full_shard or offload, got {value!r}")
    if value == "full_shard" and (count or processes().num_processes) == 1:
        raise InputError(
            "FSDP=full_shard in the environment needs several processes; start them with "
            'LAUNCHER="torchrun --nproc-per-node 2" (for make memory: PROCESSES=2), or unset FSDP'
        )
    return "full_shard" if value == "full_shard" else "offload"


def takes_same_steps() -> bool:
    """Whether all processes must take the same steps, because layers are gathered from all of
    them.
    """
    return find_sharding() is not None and processes().num_processes > 1


def held_and_gathered_layers(
    sharding: Sharding | None, device_type: str, count: int
) -> tuple[float, float]:
    """The share of all layers' weights that each of `count` processes holds, and the layers it
    gathers.

    With several processes three layers are gathered: one computes while the next one is received,
    and then sorted (measured on a CPU). A single process copies one layer, matrix by matrix. On a
    CPU, offloaded layers count as held.
    """
    if sharding is None:
        return 1.0, 0.0
    return (
        0.0 if sharding == "offload" and device_type == "cuda" else 1 / count,
        3.0 if count > 1 else 1.25,
    )


class HostEmbedding(torch.nn.Module):
    """Token embeddings that stay in the computer's memory: rows are looked up there, and only they
    are sent to the device.

    What it holds is no part of the model, whose device is that of its first parameter.
    """

    def __init__(self, embedding: torch.nn.Embedding) -> None:
        super().__init__()
        self.look_up = embedding.__call__  # a method, so that its weights are not registered here

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of `ids` (rows x tokens), on their device."""
        found: torch.Tensor = self.look_up(ids.cpu())
        return found.to(ids.device)


def keep_embeddings_on_host(model: PreTrainedModel) -> bool:
    """Replace a model's token embeddings, which are on the CPU, by HostEmbedding; say whether.

    Not where the output head has the same weights, which it needs on its device, or where PEFT has
    wrapped them to be trained.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, torch.nn.Embedding) or embedding.weight is head.weight:
        return False
    model.set_input_embeddings(HostEmbedding(embedding))
    return True


def shard_layers(model: PreTrainedModel | PeftModel, device: torch.device) -> bool:
    """Shard the frozen weights of a model's layers in place, and move everything else to the
    device.

    Returns whether FSDP is on. 4-bit weights must be stored in the type of the other weights. The
    trainer keeps the adapters equal in all processes.
    """
    sharding = find_sharding()
    if sharding is None:
        return False
    count = processes().num_processes
    if not dist.is_initialized():  # one process, which offloads
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (count,))
    policy = (
        CPUOffloadPolicy(pin_memory=device.type == "cuda")
        if sharding == "offload"
        else OffloadPolicy()
    )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder = base.get_decoder()
    layers = [
        module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for layer in layers:
        adapter = {parameter for name, parameter in layer.named_parameters() if "lora_" in name}
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=True,
            offload_policy=policy,
            ignored_params=adapter,
        )
    # nothing of its own: it ties the layers together, so that one is gathered while the last one
    # computes
    fully_shard(
        decoder,
        mesh=mesh,
        ignored_params={
            parameter for parameter in decoder.parameters() if not is_sharded(parameter)
        },
    )
    if sharding == "offload":
        keep_embeddings_on_host(base)
    for tensor in [*model.parameters(), *model.buffers()]:
        if not is_sharded(tensor):
            tensor.data = tensor.data.to(device)
    base.hf_device_map = {"": device}
    held = sum(
        parameter.to_local().nbytes for parameter in decoder.parameters() if is_sharded(parameter)
    )
    where = "in host memory" if sharding == "offload" else "on its device"
    log.info(
        "%d layers are sharded over %d processes; each keeps %s of their weights %s",
        len(layers),
        count,
        gib(held),
        where,
    )
    return True


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a process has only its share of a tensor."""
    return isinstance(tensor, DTensor)
