"""A training step in its parts, and the ladder from Hugging Face's Trainer to train.py."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from clap import CLAP
from data import Batches, Plan, Source, collate, loader
from experiments.bench.clock import Machine, clock, now, rate, timing
from experiments.bench.encoding import padded_to_77
from experiments.bench.samples import (
    SMALL,
    batches_of,
    micro_batch,
    mixture,
    sized,
    sized_clap,
    write_shards,
)
from mats import MATS
from santa import add_noise


class Loop:
    """The training loop, in steps that can be clocked one by one."""

    def __init__(self, model: MATS, machine: Machine):
        self.model, self.machine = model, machine
        self.optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-5, fused=True)

    def place(self, batch: dict) -> list[Tensor]:
        """z, ids and answer on the device."""
        keys = ("z", "ids", "answer")
        z, ids, answer = (batch[key].to(self.machine.device, non_blocking=True) for key in keys)
        if self.machine.cuda:  # one graph for all lengths
            torch._dynamo.mark_dynamic(ids, 1)
            torch._dynamo.mark_dynamic(answer, 0)
        return [z, ids, answer]

    def forward(self, net: Callable, z: Tensor, *rest: Tensor) -> None:
        with self.machine.amp():
            self.loss = net(add_noise(z, 0.015), *rest)

    def backward(self) -> None:
        self.loss.backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, net: Callable, *tensors: Tensor) -> None:
        self.forward(net, *tensors)
        self.backward()
        self.update()


# --- one step ---


def step(machine: Machine, size: str = "gpt2") -> dict:
    """One training step of MATS-GPT2 in its parts, on a batch of mean length."""
    model, n = sized(size, machine), micro_batch(size, machine)
    batches = batches_of(model, list(mixture(32 * n)), n)
    batches.sort(key=lambda batch: batch["ids"].shape[1])
    loop = Loop(model, machine)
    z, ids, answer = loop.place(batches[len(batches) // 2])
    if machine.cuda:
        model.compile()

    def mapper():
        with machine.amp():
            model.mapper(add_noise(z, 0.015))

    machine.memory()  # resets its peak
    (whole,) = clock(lambda: loop.step(model, z, ids, answer), repeats=5)
    memory = machine.memory()
    parts = {
        "mapper, forward": mapper,
        "all, forward": lambda: loop.forward(model, z, ids, answer),
        "backward": loop.backward,
        "optimiser": loop.update,
    }
    times = clock(*parts.values(), repeats=5)
    length, prefix = ids.shape[1], model.config.prefix
    flops = model.flops(length, len(answer) / n) * n / whole
    return rate(n, "samples/s", whole) | {
        "batch": f"{n} samples of {length} positions of text and {prefix} of prefix",
        "parts, s": {name: round(seconds, 4) for name, seconds in zip(parts, times)},
        "TFLOP/s": round(flops / 1e12, 3),
        "share of the rate of matrix products": round(flops / machine.peak(), 3),
        "peak memory, GB": round(memory / 1e9, 1),
    }


def step_llama(machine: Machine) -> dict:
    """The same of MATS-LLaMA-7B."""
    if not machine.cuda:
        return {"skipped": "7 billion weights want a GPU"}
    return step(machine, "llama")


# --- the ladder ---


class Obvious(torch.nn.Module):
    """Training as one would write it first, for the Trainer."""

    def __init__(self, mats: MATS, clap: CLAP):
        super().__init__()
        self.mats = mats
        # functions, so that CLAP is no submodule: it is not trained and stays in eval mode
        self.text_features, self.pad = clap.text_features, partial(padded_to_77, clap)

    def forward(self, texts, mask, ids, answer):
        with torch.no_grad():
            z = self.text_features(texts, mask)
        return {"loss": loss_everywhere(self.mats, add_noise(z, 0.015), ids, answer)}

    def collate(self, rows):
        tokens, pad = self.mats.template.encode(rows), self.mats.tokenizer.eos_token_id
        batch = collate(rows, tokens, pad, multiple=1)
        texts, mask = self.pad([row["text"] for row in rows])
        ids, answer = batch["ids"], batch["answer"]
        return {"texts": texts.cpu(), "mask": mask.cpu(), "ids": ids, "answer": answer}


def loss_everywhere(model: MATS, z: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """MATS's loss the obvious way: from logits at all positions, labels of -100 off the answers."""
    labels = torch.full_like(ids, -100).flatten()
    labels = labels.index_copy(0, answer, ids.flatten()[answer]).view_as(ids)
    labels = F.pad(labels, (model.config.prefix, 0), value=-100)
    return model.llm(inputs_embeds=model.inputs(z, ids), labels=labels).loss


class Way(NamedTuple):
    """A way to train with our loop."""

    dtype: torch.dtype  # of the frozen weights
    net: Callable  # (z, ids, answer) -> loss
    batches: Iterable[dict]


def cast(model: MATS, dtype: torch.dtype) -> None:
    """Gives the frozen weights this dtype."""
    for parameter in model.llm.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def ways_up(
    model: MATS, pretrained: torch.dtype, samples: list[dict], n: int, shards: str, machine: Machine
) -> dict[str, Way]:
    """From the Trainer's way to ours: each changes one thing more."""
    write_shards(shards, samples)
    batches = Batches(Plan([Source(shards)], [1], n), model.template)
    stream = iter(loader(batches, workers=1, pin=machine.cuda))
    as_they_come = batches_of(model, samples, n, similar=False, multiple=1)
    similar = batches_of(model, samples, n)
    everywhere, configured = partial(loss_everywhere, model), getattr(torch, machine.dtype)
    ways = {
        "our loop, CLAP's vectors cached": Way(pretrained, everywhere, as_they_come),
        "logits of answers alone": Way(pretrained, model.forward, as_they_come),
        "batches of similar length": Way(pretrained, model.forward, similar),
        "frozen weights as configured": Way(configured, model.forward, similar),
    }
    if machine.cuda:
        model.compile()
        ways["compiled"] = Way(configured, model, similar)
    ways["read from shards"] = Way(configured, model, stream)
    return ways


class Turns(TrainerCallback):
    """The Trainer and every way take turns, so that a drift of the machine hits all alike.

    A turn has `steps` steps.
    """

    def __init__(self, loop: Loop, dtype: torch.dtype, ways: dict[str, Way], steps: int):
        self.loop, self.dtype, self.ways, self.steps = loop, dtype, ways, steps
        self.seconds = {name: [] for name in ("Trainer", *ways)}

    def on_train_begin(self, args, state, control, **kwargs):
        cast(self.loop.model, self.dtype)
        self.since = now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps:
            return
        self.seconds["Trainer"].append(now() - self.since)
        for name, way in self.ways.items():
            cast(self.loop.model, way.dtype)
            since = now()
            for batch in islice(way.batches, self.steps):
                self.loop.step(way.net, *self.loop.place(batch))
            self.seconds[name].append(now() - since)
        self.on_train_begin(args, state, control)


def training(machine: Machine, size: str = "gpt2") -> dict:
    """Training MATS-GPT2, data included; against Hugging Face's Trainer and peft with CLAP's text
    tower live and padded to 77, logits everywhere and batches as they come; and one thing after the
    other changed in between."""
    model, n = sized(size, machine), micro_batch(size, machine)
    clap = sized_clap(machine, **SMALL if size == "small" else {})
    steps, rounds = (12, 4) if machine.cuda else (4, 3)  # the first round does not count
    samples = list(mixture(steps * n))
    loop, obvious = Loop(model, machine), Obvious(model, clap)
    # from_pretrained's: LLaMA's weights come in 16 bits
    dtype = getattr(torch, machine.dtype) if size == "llama" else torch.float32
    with tempfile.TemporaryDirectory() as root:
        ways = ways_up(model, dtype, samples, n, f"{root}/shards", machine)
        turns = Turns(loop, dtype, ways, steps)
        arguments = TrainingArguments(
            root,
            per_device_train_batch_size=n,
            max_steps=steps * rounds,
            report_to=[],
            use_cpu=not machine.cuda,
            bf16=machine.dtype == "bfloat16",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        # else the Trainer spreads one process over all GPUs
        arguments._n_gpu = min(1, arguments.n_gpu)
        with contextlib.redirect_stdout(sys.stderr):
            Trainer(
                obvious,
                arguments,
                train_dataset=samples,
                data_collator=obvious.collate,
                callbacks=[turns],
            ).train()
        ways.clear()  # ends the reading process before its shards are removed
    times = {name: timing(seconds[1:]) for name, seconds in turns.seconds.items()}
    return rate(n * steps, "samples/s", times["read from shards"], times["Trainer"]) | {
        "one after the other, samples/s": {
            name: round(n * steps / seconds, 2) for name, seconds in times.items()
        }
    }


def training_small(machine: Machine) -> dict:
    """The same at a third of the width and of the depth, where logits weigh more."""
    return training(machine, "small")


def training_llama(machine: Machine) -> dict:
    """The same of MATS-LLaMA: 7 B on a GPU; on a CPU its shape at a fourth of the width and the
    depth."""
    return training(machine, "llama")
