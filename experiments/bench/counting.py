"""Memory, work and waiting, counted: no device runs anything."""

import weakref
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data import Plan, round_up
from distributed.log import PEAK
from experiments.bench.clock import Machine
from experiments.bench.samples import KINDS, batches_of, fake, mixture, sized
from mats import MATS
from santa import add_noise


def weightless(size: str) -> MATS:
    """MATS at its true size, whose weights have shapes alone."""
    return sized(size, Machine("cpu", "bfloat16"), meta=True)


# --- memory ---


class Living(TorchDispatchMode):
    """Bytes of all living storages, and the most so far."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.remove, storage._cdata, storage.nbytes())

    def remove(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.now -= size


class Product(torch.autograd.Function):
    """x W^T, whose W lives for the time of a product alone: it is restored forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: "Packed") -> Tensor:
        ctx.packed = packed
        return F.linear(x, packed.restored(), packed.bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return gradient @ ctx.packed.restored(), None


class Packed(nn.Module):
    """A frozen linear layer of 4 bits (language.nf4), as large as bitsandbytes'. Without values."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias, size = layer.bias, layer.weight.numel()
        blocks = -(-size // 64)
        for name, count, dtype in (
            ("weight", -(-size // 2), torch.uint8),
            ("scales", blocks, torch.uint8),
            ("scales_of_scales", -(-blocks // 256), torch.float32),
            ("tables", 16 + 256 + 1, torch.float32),  # of weights, of scales; the scales' mean
        ):
            self.register_buffer(name, torch.empty(count, dtype=dtype, device=layer.weight.device))

    def restored(self) -> Tensor:
        scales = torch.empty(len(self.scales), device=self.scales.device)  # in 32 bits
        shape = self.out_features, self.in_features
        return torch.empty(shape, dtype=torch.bfloat16, device=scales.device)

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x.to(torch.bfloat16), self).to(x.dtype)


def pack(model: MATS) -> MATS:
    """The model, its language model's frozen linear layers as `Packed`, and the head as it was."""
    llm = model.llm.get_base_model()
    for name, module in list(llm.named_modules()):
        if isinstance(module, LoraLayer):  # under autocast peft's of 4 bits does not copy its input
            module.cast_input_dtype_enabled = False
        trained = any(p.requires_grad for p in module.parameters())
        if type(module) is nn.Linear and not trained and module is not llm.get_output_embeddings():
            llm.set_submodule(name, Packed(module))
    return model


def memory_of(size: str, n: int, positions: int, answers: int, nf4: bool = False) -> float:
    """GB that two training steps of n samples take at most, summed over fake tensors.

    positions, answers: tokens of a sample's text, and of its answer; nf4: frozen linear layers have
    4 bits. Not compiled, and without the share of CUDA and its libraries (about 1 GB).
    """
    model = pack(weightless(size)) if nf4 else weightless(size)
    with FakeTensorMode(), Living() as living:
        fake(model)
        optimizer = torch.optim.AdamW(model.trainable().values(), fused=True)
        for _ in range(2):
            z = torch.empty(n, 1024)
            ids = torch.empty(n, positions, dtype=torch.long)
            answer = torch.empty(n * answers, dtype=torch.long)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(add_noise(z, 0.015), ids, answer)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return living.most / 1e9


def memory(machine: Machine) -> dict:
    """Memory of a training step at its true size, computed: a usual batch, and one of the longest
    samples."""
    result = {"unit": "GB"}
    for name, size, n, nf4 in (
        ("GPT2", "gpt2", 128, False),
        ("GPT2", "gpt2", 64, False),
        ("LLaMA-7B", "llama", 12, False),
        ("LLaMA-7B", "llama", 4, False),
        ("LLaMA-7B in 4 bits", "llama", 12, True),
        ("LLaMA-7B in 4 bits", "llama", 4, True),
        ("LLaMA-7B in 4 bits", "llama", 1, True),
    ):
        usual, longest = memory_of(size, n, 64, 40, nf4), memory_of(size, n, 176, 151, nf4)
        result[f"MATS-{name}, micro-batch {n}"] = f"{usual:.1f} to {longest:.1f} GB"
    return result


# --- work ---


def schedule(machine: Machine) -> dict:
    """The paper's two runs: FLOP of their samples, and hours on GPUs that spend 40 % of their
    nominal bf16 rate on them."""
    result = {"unit": "hours"}
    for name, size, n in (("MATS-GPT2", "gpt2", 128), ("MATS-LLaMA-7B", "llama", 96)):
        model, samples = weightless(size), list(mixture(32 * n))
        batches = batches_of(model, samples, n)
        padded = sum(batch["ids"].numel() for batch in batches)
        answers = sum(len(batch["answer"]) for batch in batches)
        each = model.flops(padded / len(samples), answers / len(samples))
        total = each * n * 90_000
        result[name] = {
            "GFLOP a sample": round(each / 1e9, 1),
            "EFLOP in all": round(total / 1e18, 2),
        }
        for count, gpu in ((2, "A100"), (1, "H200")):
            seconds = total / (count * 0.4 * PEAK[gpu])
            result[name][f"{count} x {gpu}, h"] = round(seconds / 3600, 1)
    return result


# --- waiting ---


class Lengths(NamedTuple):
    """A source as a plan sees it, and the tokens of each sample of a shard."""

    shards: list[dict]
    lengths: np.ndarray


def waiting(machine: Machine) -> dict:
    """The share of their time that processes side by side work, and do not wait for the longest
    batch among them, by the plan and FLOP alone; with the order as it is, and with as many
    micro-batches together as there are processes."""
    rng, sources = np.random.default_rng(0), []
    for kind in KINDS.values():
        answers = rng.normal(kind.answer, kind.deviation, 4096).clip(1, 150).astype(int)
        sources.append(Lengths(8 * [{"n": 4096}], kind.instruction + answers + 1))
    result = {"unit": "share"}
    for name, size, n, ranks, accumulate in (
        ("MATS-GPT2, 2 x 64", "gpt2", 64, 2, 1),
        ("MATS-LLaMA-7B, 2 x 4 x 12", "llama", 12, 2, 4),
        ("MATS-LLaMA-7B, 8 x 12", "llama", 12, 8, 1),
    ):
        model, shares = weightless(size), []
        fixed, position = model.flops(0, 0), model.flops(1, 0) - model.flops(0, 0)
        for together in (1, ranks):
            weights = [kind.share for kind in KINDS.values()]
            plan = Plan(sources, weights, n, together=together)
            lengths = list(islice(padded_lengths(plan), 1000 * accumulate * ranks))
            flops = fixed + position * np.reshape(lengths, (1000, accumulate, ranks))
            shares.append(round(working_share(flops.sum(1)), 3))
        result[name] = f"{shares[0]}, together {shares[1]}"
    return result


def padded_lengths(plan: Plan) -> Iterator[int]:
    """Positions of text of each micro-batch, padded to a multiple of 8; endlessly."""
    longest = {}  # visit number -> (its micro-batches,)
    for _, visit, k in plan.batches():
        if visit.number not in longest:
            lengths = plan.sources[visit.source].lengths
            longest[visit.number] = lengths[plan.cut(visit, lengths)].max(1)
        yield round_up(longest[visit.number][k], 8)


def working_share(flops: np.ndarray) -> float:
    """flops (updates, ranks): in an update every rank waits for the one that has the most."""
    return flops.mean() / flops.max(1).mean()
