"""What must hold of MATS with any language model. A check returns what is wrong, or "".

build        a family -> a Case: its language model in a folder, and MATS with that
CHECKS       {name: check(case)}
problems     of a case, those checks that do not hold
"""

import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from data import collate
from experiments.matrix.families import Family, small, tokenizer
from mats import MATS, MATSConfig

SIZES = {"dim": 16, "width": 32, "prefix": 6, "tokens": 4, "layers": 1, "heads": 4}
ASKS = ("Hi", "What calls near a river?", "Is it a dog, or a cat while it rains over there?")


class Case(NamedTuple):
    """MATS with a family's small model, which lies in folder/llm."""

    family: Family
    folder: Path
    model: MATS


def build(family: Family, folder: Path, **settings) -> Case:
    """Raises DataError where MATS refuses the language model."""
    words, llm = tokenizer(), folder / "llm"
    if not llm.exists():
        small(family, len(words)).save_pretrained(llm)
        words.save_pretrained(llm)
    torch.manual_seed(1)
    made = {"llm": str(llm), "max_answer": 6, "lora_dropout": 0.0}
    made = made | SIZES | settings
    model = MATS(MATSConfig(**made)).eval()
    for name, weight in model.trainable().items():
        if "lora_B" in name:  # it starts at zero: give it something to say
            torch.nn.init.normal_(weight, std=0.2)
    with torch.no_grad():  # and the mapper's vectors the size of words
        model.mapper.proj.weight *= 10
    return Case(family, folder, model)


def batch_of(model: MATS) -> tuple[Tensor, Tensor, Tensor]:
    """z (3, D), ids (3, T) and answer (N,), as MATS.forward takes them; of three lengths."""
    answers = ("A dog", "A frog calls near a river", "A cow")
    samples = [
        {"text": answer, "instruction": ask, "answer": answer, "source": "", "id": ask}
        for ask, answer in zip(ASKS, answers)
    ]
    batch = collate(samples, model.template.encode(samples), model.tokenizer.eos_token_id)
    return vectors(3), batch["ids"], batch["answer"]


def vectors(n: int) -> Tensor:
    return F.normalize(torch.randn(n, SIZES["dim"], generator=torch.Generator().manual_seed(0)))


def logits_of(llm: PeftModel, x: Tensor) -> Tensor:
    """x (B, T, D_llm) -> logits (B, T, V), by the family's own forward."""
    for module in llm.modules():
        if hasattr(module, "rope_deltas"):  # Qwen3-VL keeps those of the last batch
            module.rope_deltas = None
    return llm.get_base_model()(inputs_embeds=x, use_cache=False).logits


def error_of(got: Tensor, want: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))


# --- the loss -----------------------------------------------------------------------------------


def backward(model: MATS, loss: Tensor) -> tuple[float, dict[str, Tensor | None]]:
    """A loss, and the gradient of every parameter that is trained; None where it got none."""
    model.zero_grad()
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.trainable().items()}
    model.zero_grad()
    return float(loss.detach()), gradients


def full_logits_loss(model: MATS) -> Tensor:
    """Over the logits of all positions by transformers; -100 is the label off the answers."""
    z, ids, answer = batch_of(model)
    labels = torch.full_like(ids, -100)
    labels.view(-1)[answer] = ids.view(-1)[answer]
    head = len(model.template.head)
    before, after = labels.tensor_split([head], dim=1)
    unheard = torch.full((len(ids), model.config.prefix), -100)
    logits = logits_of(model.llm, model.inputs(z, ids))
    labels = torch.cat([before, unheard, after], dim=1)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())


def loss_error(case: Case) -> float:
    """How far MATS's loss in training is from that of full logits in inference, as a share."""
    with torch.no_grad():
        want = full_logits_loss(case.model.eval())
        got = case.model.train()(*batch_of(case.model))
    return error_of(got, want)


def loss(case: Case) -> str:
    """The loss and all gradients are those of transformers' full logits."""
    want, wanted = backward(case.model, full_logits_loss(case.model.eval()))
    got, found = backward(case.model, case.model.train()(*batch_of(case.model)))
    if abs(got - want) > 1e-6 * want:
        return f"a loss of {got}, {want} by full logits"
    for name, gradient in found.items():
        if gradient is not None and wanted[name] is not None:
            error = error_of(gradient, wanted[name])
            if error > 1e-4:
                return f"the gradient of {name} is wrong by {error:.1g} of its size"
    return ""


def gradients(case: Case) -> str:
    """Mapper and LoRA get gradients, every part of them, and nothing else does."""
    model = case.model.train()
    _, found = backward(model, model(*batch_of(model)))
    strange = [n for n in found if not n.startswith("mapper.") and ".lora_" not in n]
    empty = [n for n, gradient in found.items() if gradient is None or not gradient.any()]
    frozen = [n for n, weight in model.named_parameters() if weight.grad is not None]
    if not any(".lora_" in name for name in found):
        return "no LoRA"
    if strange or empty or frozen:
        return f"trained: {strange[:2]}; without a gradient: {empty[:2]}; frozen: {frozen[:2]}"
    return ""


def dropout(case: Case) -> str:
    """The frozen model drops nothing, whatever its config says: only LoRA's inputs are dropped."""
    batch = batch_of(case.model)
    with torch.no_grad():
        one, two = case.model.train()(*batch), case.model(*batch)
        want = case.model.eval()(*batch)
    if float(one) != float(two) or error_of(one, want) > 1e-6:
        return f"losses in training {float(one)} and {float(two)}, in inference {float(want)}"
    return ""


# --- answers ------------------------------------------------------------------------------------


@contextmanager
def listening(model: MATS):
    """Yields a list that gets the logits (B, T, V) of each batch that MATS.generate decodes."""
    heard, generate = [], model.llm.generate

    def listen(**options):
        out = generate(**options, return_dict_in_generate=True, output_logits=True)
        heard.append(torch.stack(out.logits, dim=1))
        return out.sequences

    with patch.object(model.llm, "generate", listen):
        yield heard


def batches(case: Case) -> str:
    """An answer alone is the answer in a batch of other lengths; so are its logits.

    It depends on the vector.
    """
    model, asks = case.model.eval(), [*ASKS, ASKS[0]]
    z = vectors(len(asks))
    with listening(model) as heard:
        together = model.generate(z, asks)
        order = sorted(range(len(asks)), key=lambda i: len(model.template.prompts(asks)[i]))
        alone = [model.generate(z[i : i + 1], asks[i : i + 1])[0] for i in range(len(asks))]
    if together != alone:
        return f"together {together}, alone {alone}"
    batch, *rows = heard
    worst = max(
        error_of(batch[order.index(i)][: row.shape[1]], row[0]) for i, row in enumerate(rows)
    )
    if worst > 1e-4:
        return f"in a batch, logits differ by {worst:.1g} of the largest"
    # in the batch, rows 0 and 1 have the shortest prompt, and other vectors
    return "" if error_of(batch[0, 0], batch[1, 0]) > 1e-3 else "the vector changes no answer"


def training(case: Case) -> str:
    """The first logits of an answer are those that the loss sees at its first token."""
    model, asks = case.model.eval(), list(ASKS)
    with listening(model) as heard, torch.no_grad():
        model.generate(vectors(3)[:1], asks[2:], max_new_tokens=1)
        ids = model.template.head + model.template.prompts(asks)[2]
        x = model.inputs(vectors(3)[:1], torch.tensor([ids]))
        want = logits_of(model.llm, x)[:, -1]
    error = error_of(heard[0][:, 0], want)
    return f"wrong by {error:.1g} of the largest logit" if error > 1e-4 else ""


# --- files --------------------------------------------------------------------------------------


def saved(case: Case) -> Path:
    """The folder of the trained model."""
    folder = case.folder / "model"
    if not folder.exists():
        case.model.save_pretrained(folder)
    return folder


def files(case: Case) -> str:
    """Saved and loaded it has the same loss and says the same."""
    model, again = case.model.eval(), MATS.from_pretrained(saved(case))
    with torch.no_grad():
        want, got = model(*batch_of(model)), again(*batch_of(again))
    if error_of(got, want) > 1e-6:
        return f"a loss of {float(got)} after loading, {float(want)} before"
    answers = model.generate(vectors(3), list(ASKS)), again.generate(vectors(3), list(ASKS))
    return "" if answers[0] == answers[1] else f"answers {answers[1]}, before {answers[0]}"


def adapter(case: Case) -> str:
    """peft puts the saved adapter on a fresh copy of the language model: the same logits."""
    fresh = type(case.model.llm.get_base_model()).from_pretrained(case.folder / "llm")
    with warnings.catch_warnings():  # peft asks transformers (5.23) in a deprecated way
        warnings.simplefilter("ignore", FutureWarning)
        theirs = PeftModel.from_pretrained(fresh, str(saved(case) / "lora")).eval()
    z, ids, _ = batch_of(case.model.eval())
    with torch.no_grad():
        x = case.model.inputs(z, ids)
        want = logits_of(case.model.llm, x)
        error = error_of(logits_of(theirs, x), want)
        with theirs.disable_adapter():
            bare = error_of(logits_of(theirs, x), want)
    if error > 1e-5:
        return f"logits differ by {error:.1g} of the largest"
    return "" if bare > 1e-3 else "without the adapter the logits are the same"


CHECKS = {
    check.__name__: check for check in (loss, gradients, dropout, batches, training, files, adapter)
}
FAST = ("loss", "gradients", "dropout")  # they neither generate nor load


def problems(case: Case, names=tuple(CHECKS)) -> dict[str, str]:
    """{check: what is wrong} of the checks that do not hold; an error in one is wrong too."""
    found = {}
    for name in names:
        try:
            found[name] = CHECKS[name](case)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return {name: problem for name, problem in found.items() if problem}


def lora_names(model: MATS) -> list[str]:
    """The last names of the layers that have LoRA."""
    layers = model.llm.named_modules()
    return sorted({name.split(".")[-1] for name, m in layers if isinstance(m, LoraLayer)})


def seconds_to_load(case: Case) -> float:
    start = time.perf_counter()
    MATS.from_pretrained(saved(case))
    return time.perf_counter() - start
