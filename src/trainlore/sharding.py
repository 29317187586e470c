"""Weights spread over the processes (FSDP2), and back to a plain network when the training is over."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.slots import fills
from trainlore.team import Team

TOUCHING = ("attach", "penalty", "gradient", "optimizer", "update", "readout")  # slots that reach for the weights


def fit_for_shards(parts: Sequence[Any]) -> None:
    """Raise Bad on a part that reaches for weights and was not seen to do so with a share of each."""
    for part in parts:
        if touched := [slot for slot in TOUCHING if fills(part, slot)]:
            if not getattr(type(part), "sharded", False):
                name = type(part).card["name"] if hasattr(type(part), "card") else type(part).__name__
                raise Bad(
                    f"{name} reaches for whole weights in `{touched[0]}`, which shard: true spreads over processes"
                )


@contextmanager
def sharded(model: Model, team: Team) -> Iterator[None]:
    """Each process holds a share of every weight of the model, its gradient and its moments; whole again afterwards.

    Blocks are gathered one at a time for their passes. The model gets another network object at the end; after an error
    it stays shared out, as gathering waits for all processes and the others may not come.
    """
    from torch.distributed.device_mesh import init_device_mesh

    net = model.net
    hollow = _hollow(net)
    mesh = init_device_mesh(team.device.type, (team.size,))
    try:
        blocks = list(model.blocks)
    except Bad:
        blocks = []
    for module in (*blocks, net):
        fully_shard(module, mesh=mesh)
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # each process computed its part of one sum
            module.set_force_sum_reduction_for_comms(True)  # gloo knows plain sums only
    yield
    whole = {name: whole_tensor(value) for name, value in net.state_dict().items()}
    trains = {name: p.requires_grad for name, p in net.named_parameters()}
    hollow.load_state_dict(whole, assign=True)
    for name, value in net.named_buffers():
        if name not in whole:  # buffers that no state holds, such as rotary frequencies
            parent, _, last = name.rpartition(".")
            hollow.get_submodule(parent)._buffers[last] = value
    if hasattr(hollow, "tie_weights"):
        hollow.tie_weights()  # type: ignore[operator]
    for name, p in hollow.named_parameters():
        p.requires_grad_(trains.get(name, True))
    model.net = hollow


def whole_tensor(value: Any) -> Any:
    """A sharded tensor gathered, anything else as it is."""
    return value.full_tensor().detach() if isinstance(value, DTensor) else value


def _hollow(net: nn.Module) -> nn.Module:
    """The same modules without room for their weights."""
    memo: dict[int, Any] = {}
    for p in net.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in net.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(net, memo)


# ---- trees with sharded tensors in them, on disk


def parted(tree: Any, shards: dict[str, Any]) -> Any:
    """The tree with its sharded tensors taken out into `shards`, by number."""
    if isinstance(tree, DTensor):
        name = f"t{len(shards)}"
        shards[name] = tree.detach().clone()  # tied weights share memory, which safetensors does not write
        return {"__shard__": name, "shape": list(tree.shape), "dtype": str(tree.dtype).removeprefix("torch.")}
    if isinstance(tree, dict):
        return {k: parted(v, shards) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(parted(v, shards) for v in tree)
    return tree


def joined(tree: Any, shards: dict[str, Any]) -> Any:
    """The inverse of `parted`."""
    if isinstance(tree, dict):
        return shards[tree["__shard__"]] if "__shard__" in tree else {k: joined(v, shards) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(joined(v, shards) for v in tree)
    return tree


def shared_out(tree: Any, like: Any, optimizer: torch.optim.Optimizer) -> Any:
    """A training's state, saved by one process, with its tensors shared out as those of `like`, its state now, are."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]

    def out(value: Any, pattern: Any) -> Any:
        if isinstance(value, dict):
            known = pattern if isinstance(pattern, dict) else {}
            return {k: out(v, known.get(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            alike = isinstance(pattern, list | tuple) and len(pattern) == len(value)
            pairs = zip(value, pattern if alike else [None] * len(value), strict=True)
            return type(value)(out(v, p) for v, p in pairs)
        if isinstance(pattern, DTensor) and not isinstance(value, DTensor) and value.shape == pattern.shape:
            return tensor.distribute_tensor(value, pattern.device_mesh, pattern.placements)
        return value

    # Before its first step the optimizer has no moments to show: they are as the weights.
    moments = {i: dict.fromkeys(held, weights[i]) for i, held in tree["optimizer"]["state"].items()}
    found = out(tree, {**like, "optimizer": {"state": moments}})
    if back := tree["guard"].get("held"):  # the state that a leap of the loss leads back to
        found["guard"]["held"] = shared_out(back, like, optimizer)
    return found


def places(tree: Any, team: Team, spread: bool) -> dict[str, Tensor]:
    """Room for all sharded tensors a tree speaks of: spread over as many processes as there are now, or whole."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(team.device.type, (team.size,)) if spread else None
    found: dict[str, Tensor] = {}

    def look(value: Any) -> None:
        if isinstance(value, dict) and "__shard__" in value:
            kind, shape = getattr(torch, value["dtype"]), value["shape"]
            found[value["__shard__"]] = (
                tensor.zeros(shape, dtype=kind, device_mesh=mesh, placements=[tensor.Shard(0)])
                if spread
                else torch.zeros(shape, dtype=kind, device=team.device)
            )
        elif isinstance(value, dict):
            for v in value.values():
                look(v)
        elif isinstance(value, list | tuple):
            for v in value:
                look(v)

    look(tree)
    return found


def write_shards(shards: dict[str, Tensor], folder: str, group: Any) -> None:
    """Every process writes its share, as safetensors. What they agree on first travels in the group."""
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(folder, save_distributed=True)
    dcp.save(shards, storage_writer=writer, process_group=group)


def read_shards(shards: dict[str, Tensor], folder: str) -> None:
    """Fill `shards` from the folder, whatever the number of processes that wrote it."""
    import torch.distributed.checkpoint as dcp

    dcp.load(shards, storage_reader=dcp.HuggingFaceStorageReader(folder))
