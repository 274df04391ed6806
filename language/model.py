"""A frozen causal language model of transformers, with LoRA.

load        a name or folder -> tokenizer, model
check       all that MATS needs of a model, tried on a few tokens when it is built
Rescale     the output embedding's products -> logits, where a model scales or caps them
add_lora    PEFT's LoRA on the layers that `lora_targets` names
"""

import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

from disk import DataError, is_path, read_finite, read_json, reading
from language import nf4
from language.prompt import Template, control_tokens

# SDPA that is told "causal" and given no mask. transformers' own asks whether the mask can be left
# out, which makes every step wait for the GPU. Compiled before torch 2.14 it always builds a mask,
# which FlashAttention cannot take.
AttentionInterface.register("causal", sdpa_attention_forward)


@dataclass
class LanguageConfig:
    llm: str = "gpt2"  # any causal LM of transformers, by name or folder; frozen
    llm_dtype: str = "float32"  # of the frozen weights: float32 | bfloat16 | nf4
    template: str = "{audio}{instruction}"  # the prompt (language/prompt.py), or: chat
    max_answer: int = 150  # longer answers are cut, in tokens
    lora_rank: int = 8  # section 4.1
    lora_alpha: int = 32  # the paper's "scaling factor 4" is lora_alpha / lora_rank
    lora_dropout: float = 0.1  # section 4.1
    lora_targets: str = ""  # layers: names, a regular expression, all-linear; empty: attention's


# --- loading ------------------------------------------------------------------------------------


def load(config: LanguageConfig, llm=None, tokenizer=None):
    """The tokenizer and the frozen model of config.llm; objects that are given are taken instead.

    The model has neither gradients nor dropout. Raises DataError where it cannot be loaded.
    """
    name = f"language model {config.llm!r}"
    if llm is None and is_path(config.llm) and not Path(config.llm, "config.json").exists():
        raise DataError(f"{name}: there is no such folder, or no config.json in it (--llm)")
    advice = (
        "is it the name of one on the hub, spelt so, or a folder (--llm, or `llm` in the model's "
        "config.json)? One that is private or gated needs hf auth login"
    )
    safe = {"trust_remote_code": False}  # else transformers asks whether to run a model's code
    with reading(name, advice):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(config.llm, **safe)
    if llm is None:
        with reading(name, advice):
            found = AutoConfig.from_pretrained(config.llm, **safe)
            refuse_kernel(found, name)
            how = nf4.loading(config.llm_dtype)
            llm = kind_of(found, name).from_pretrained(config.llm, **how, **safe)
    take_vectors(llm)
    return tokenizer, nf4.cast(llm, config.llm_dtype).requires_grad_(False).eval()


def kind_of(config, name: str):
    """The class that loads a causal language model, or a wrapper of one. Raises DataError."""
    for models, kind in (
        (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
        (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    ):
        if type(config) in models:
            return kind
    raise DataError(
        f"{name} is of the type {config.model_type}, of which transformers has no causal language "
        "model: choose another --llm"
    )


def refuse_kernel(config, name: str) -> None:
    """Raises DataError where the config names an attention of the hub, which is code."""
    wanted = config._attn_implementation
    for one in wanted.values() if isinstance(wanted, dict) else [wanted]:
        if "/" in str(one):
            raise DataError(
                f"{name}: its config.json names the attention kernel {one}, which is code from the "
                "hub, and is never run: take that field out"
            )


def check_tokens(template: Template, llm: nn.Module, name: str) -> None:
    """Raises DataError unless the model has all tokens that the prompt and any text may hold."""
    control = set(control_tokens(template.tokenizer))  # in texts these are plain text
    vocabulary = template.tokenizer.get_vocab().items()
    ordinary = max(i for token, i in vocabulary if token not in control)
    ((ids, _),) = template.encode([{"instruction": "a", "answer": "a"}])
    highest, known = max(ordinary, *ids), llm.get_input_embeddings().num_embeddings
    if highest >= known:
        raise DataError(
            f"language model {name!r} knows {known:,} tokens, and its tokenizer makes token number "
            f"{highest:,}: are both of the same model?"
        )


def forget_decoding(llm: nn.Module) -> list[int]:
    """Takes from a model its checkpoint's way of decoding. Returns the tokens at which it ends.

    Qwen2.5-Instruct, for one, brings a repetition penalty, which would also apply to "greedy".
    """
    ends = llm.generation_config.eos_token_id if llm.generation_config else None
    llm.generation_config = GenerationConfig(eos_token_id=ends)  # for another MATS on this model
    if ends is None:
        return []
    return [ends] if isinstance(ends, int) else list(ends)


def take_vectors(llm: nn.Module) -> None:
    """Lets generate() hand vectors to a wrapper, which takes them and does not say so.

    transformers (5.23) looks for the name in the signature of prepare_inputs_for_generation.
    """
    prepare = llm.prepare_inputs_for_generation
    if "inputs_embeds" in inspect.signature(prepare).parameters:
        return

    def prepare_with_vectors(input_ids, inputs_embeds=None, **kwargs):  # its names are asked for
        return prepare(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    llm.prepare_inputs_for_generation = prepare_with_vectors


def decoder_of(llm: nn.Module) -> nn.Module:
    """The part that turns input embeddings into hidden states, without a wrapper's other towers."""
    decoder = llm.get_decoder()
    return llm.model if decoder is llm else decoder  # llm itself: Llama 4, in transformers 5.23


def train_lora(llm: nn.Module, mode: bool) -> None:
    """Switches LoRA's dropout on or off. The frozen model stays as it is in inference.

    Many families drop out by their own training flag, and not in an nn.Dropout.
    """
    llm.eval()
    for module in llm.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout.train(mode)


# --- logits -------------------------------------------------------------------------------------

# The same field multiplies in one family and divides in another, or is not used at all.
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_mup_width_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


class Rescale(NamedTuple):
    """Products of the output embedding (..., V) -> logits: cap tanh(scale x / cap)."""

    scale: float = 1.0
    cap: float = 0.0  # 0: none

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = self.scale * logits
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits


def rescalings(llm: nn.Module) -> list[Rescale]:
    """All that the fields of a model's config may mean, the likeliest first."""
    config = llm.config.get_text_config()
    factors = [value for name in FACTORS if (value := getattr(config, name, None))]
    caps = [value for name in CAPS if (value := getattr(config, name, None))]
    scales = [x for factor in factors for x in (factor, 1 / factor)]
    return [Rescale(scale, cap) for cap in [*caps, 0.0] for scale in [*scales, 1.0]]


# --- the check ----------------------------------------------------------------------------------


def has_values(llm: nn.Module) -> bool:
    """Whether the weights are numbers: those of `meta` and fake tensors are shapes alone."""
    weights = [*llm.parameters()]
    return not any(w.is_meta or isinstance(w, FakeTensor) for w in weights)


class Checked(NamedTuple):
    maskless: bool  # whether it can be trained without attention masks
    rescale: Rescale


def check(llm: nn.Module, name: str, longest: int) -> Checked:
    """Tries a model on a few tokens.

    longest: positions of the longest sample. Raises DataError, which names the model, where it sees
    later tokens, takes no vectors in place of tokens, has logits that no Rescale makes, or lets
    padding into its answers.
    """
    maskless = llm.config._attn_implementation == "sdpa" and longest <= window_of(llm)
    if not has_values(llm):
        return Checked(maskless, rescalings(llm)[0])
    model = f"language model {name!r} ({type(llm).__name__})"
    # six tokens; the second row differs in the last one
    first = llm.get_input_embeddings().num_embeddings // 2
    ids = first + torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 6]])
    ids = ids.to(llm.get_input_embeddings().weight.device)
    with torch.no_grad(), reading(model, "MATS needs a causal model that takes vectors as input"):
        logits = llm(input_ids=ids, use_cache=False).logits  # (2, 6, V)
        if not logits.isfinite().all():
            raise DataError(f"{model}: its logits are not finite: are its weights damaged?")
        if not alike(logits[0, :5], logits[1, :5]):
            raise DataError(f"{model} sees the tokens that it should predict: it is not causal")
        fits = fitting(llm, products_without_mask(llm, ids), logits) if maskless else None
        if not fits:
            maskless, fits = False, fitting(llm, products(llm, ids), logits)
        if not fits:
            raise DataError(
                f"{model}: its logits are not its output embedding of the last hidden state, "
                "scaled or softcapped, so the loss would be wrong: choose another --llm"
            )
        if not keeps_padding_out(llm, ids):
            raise DataError(
                f"{model}: its answers depend on the padding in their batch: choose another --llm"
            )
    return Checked(maskless, fits)


def fitting(llm: nn.Module, products: Tensor, logits: Tensor) -> Rescale | None:
    """The rescaling that comes closest to the logits; None where none is alike."""
    closest = min(rescalings(llm), key=lambda rescale: apart(rescale(products), logits))
    return closest if alike(closest(products), logits) else None


WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "local_attention")


def window_of(llm: nn.Module) -> float:
    """Positions that every layer sees at least; within so many, causal attention needs no mask."""
    config = llm.config.get_text_config()
    windows = [getattr(config, field, None) for field in WINDOWS]
    windows = [w for found in windows for w in (found if isinstance(found, list) else [found])]
    return min([window for window in windows if window], default=float("inf"))


def apart(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def alike(a: Tensor, b: Tensor, looser: float = 1) -> bool:
    """Whether two tensors are equal but for rounding."""
    tolerance = looser * (1e-4 if b.dtype == torch.float32 else 3e-2)
    return apart(a, b) <= tolerance * b.float().abs().max().item()


def products(llm: nn.Module, ids: Tensor) -> Tensor:
    """(B, T, V): the output embedding of the last hidden state, as MATS.forward computes it."""
    x = llm.get_input_embeddings()(ids)
    hidden = decoder_of(llm)(inputs_embeds=x, use_cache=False).last_hidden_state
    return unembed(llm, hidden)


def unembed(llm: nn.Module, hidden: Tensor) -> Tensor:
    """The output embedding (..., V) of hidden states (..., D); Mamba's decoder has float32 ones."""
    output = llm.get_output_embeddings()
    return output(hidden.to(output.weight.dtype))


def products_without_mask(llm: nn.Module, ids: Tensor) -> Tensor:
    """products(), under the attention of training."""
    before = llm.config._attn_implementation
    llm.set_attn_implementation("causal")
    try:
        return products(llm, ids)
    finally:
        llm.set_attn_implementation(before)


def keeps_padding_out(llm: nn.Module, ids: Tensor) -> bool:
    """Whether the answer to four vectors is the same beside one to six as alone.

    The vectors are no words, as the mapper's are not.
    """
    x = llm.get_input_embeddings()(ids)  # (2, 6, D)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    x = x + 0.1 * x.std() * noise.to(x)
    return alike(answered(llm, x, [4, 6])[:1], answered(llm, x[:1], [4]), looser=8)


class Always(LogitsProcessor):
    """Chooses the same token, so that no tie can be broken in two ways."""

    def __call__(self, input_ids, scores):
        chosen = torch.full_like(scores, -1e9)
        chosen[:, scores.shape[1] // 2] = 0
        return chosen


def answered(llm: nn.Module, x: Tensor, lengths: list[int]) -> Tensor:
    """Logits (B, 2, V) of two new tokens after the first vectors of each row of x (B, T, D)."""
    T = max(lengths)
    left = [T - length for length in lengths]  # of padding
    x = torch.stack([row[:T].roll(n, dims=0) for row, n in zip(x, left)])
    mask = torch.arange(T, device=x.device) >= torch.tensor(left, device=x.device)[:, None]
    out = llm.generate(
        inputs_embeds=x,
        attention_mask=mask.long(),
        max_new_tokens=2,
        do_sample=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([Always()]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits, dim=1)


# --- LoRA ---------------------------------------------------------------------------------------


@contextmanager
def using_peft(what: str, advice: str) -> Iterator[None]:
    """disk.reading, without a warning: peft asks transformers (5.23) in a deprecated way."""
    with warnings.catch_warnings(), reading(what, advice):
        warnings.simplefilter("ignore", FutureWarning)
        yield


def linear_layers(llm: nn.Module) -> list[str]:
    """Full names of all linear layers but the output embedding."""
    head = llm.get_output_embeddings()
    return [
        name
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def targets_of(llm: nn.Module, targets: str) -> list[str]:
    """The layers that get LoRA, as PEFT takes them: last names, or full names in a wrapper.

    targets: as LanguageConfig.lora_targets. Raises DataError, with the candidates, where a name
    fits no layer.
    """
    inside = {id(module) for module in decoder_of(llm).modules()}
    modules, every = dict(llm.named_modules()), linear_layers(llm)
    layers = [name for name in every if id(modules[name]) in inside]  # a wrapper has others
    found = [name for name in layers if is_target(name, targets)]
    if not targets:
        found = default_targets(llm, layers)
    missing = []
    if not is_pattern(targets):
        wanted = [] if targets == "all-linear" else map(str.strip, targets.split(","))
        missing = [name for name in wanted if name and not any(named(n, name) for n in layers)]
    if missing or not found:
        last = sorted({name.rpartition(".")[2] for name in layers})
        raise DataError(
            f"--lora_targets={targets}: {type(llm).__name__} has no such layer for LoRA"
            f"{': ' + ', '.join(missing) if missing else ''}; it has {', '.join(last) or 'none'} "
            "(names, a regular expression for whole names, or all-linear)"
        )
    short = sorted({name.rpartition(".")[2] for name in found})
    if [name for name in every if name.rpartition(".")[2] in short] == found:
        return short
    return found


def is_pattern(targets: str) -> bool:
    return bool(re.search(r"[*+?^$|()\[\]{}\\]", targets))


def named(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def is_target(layer: str, targets: str) -> bool:
    if targets == "all-linear":
        return True
    if is_pattern(targets):
        with reading(f"--lora_targets={targets}", "it should be a regular expression"):
            return bool(re.fullmatch(targets, layer))
    return any(named(layer, target.strip()) for target in targets.split(",") if target.strip())


def default_targets(llm: nn.Module, layers: list[str]) -> list[str]:
    """PEFT's default for this family; else the attention's projections, or those into a state."""
    names = PEFT_TARGETS.get(llm.config.get_text_config().model_type, [])
    found = [layer for layer in layers if any(named(layer, name) for name in names)]
    found = found or [layer for layer in layers if re.search(r"att(n|ention)[^.]*\.", layer)]
    return found or [layer for layer in layers if named(layer, "in_proj")]  # Mamba


def add_lora(llm: nn.Module, config: LanguageConfig) -> nn.Module:
    """Raises DataError where lora_targets name no layer of the model, or PEFT refuses them."""
    targets, modules = targets_of(llm, config.lora_targets), dict(llm.named_modules())
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=any(
            isinstance(module, Conv1D) and any(named(name, target) for target in targets)
            for name, module in modules.items()
        ),
    )
    with using_peft(f"LoRA on {config.llm}", "change --lora_targets or --lora_rank"):
        return get_peft_model(llm, lora)


def load_lora(llm: nn.Module, folder: str) -> nn.Module:
    """Raises DataError, naming the file, where the adapter cannot be read or does not fit."""
    read_json(f"{folder}/adapter_config.json")
    read_finite(f"{folder}/adapter_model.safetensors")
    with using_peft(folder, "is it the adapter of another language model?"):
        return PeftModel.from_pretrained(llm, folder, is_trainable=True)
