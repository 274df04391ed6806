"""4 bits: what `llm_dtype="nf4"` means (QLoRA, Dettmers et al., NeurIPS 2023), by bitsandbytes.

A weight of a frozen linear layer is one of 16 numbers times its block's scale. 64 weights share a
scale of 8 bits, and 256 scales share one of 32 bits: 4.127 bits a weight. Each product restores its
weights in bfloat16 and drops them again. Embeddings, norms and the head are bfloat16.

LoRA and the mapper stay float32, and `dtype="bfloat16"` multiplies them in bfloat16 (autocast):
QLoRA's arithmetic, over weights that do not lose small updates to rounding. They are so few that 16
bits would save little.
"""

from collections.abc import Iterable

import torch
import torch.nn as nn

from disk import DataError, reading

INSTALL = "it needs bitsandbytes: pip install -r requirements-4bit.txt"


def loading(llm_dtype: str) -> dict:
    """transformers' from_pretrained keywords for the frozen weights.

    4 bits are made while loading, on this process's GPU where there is one: there it takes seconds.
    Raises DataError where bitsandbytes is missing, or cannot do it on this device.
    """
    if llm_dtype != "nf4":
        return {"dtype": floating(llm_dtype)}
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    with reading(f"llm_dtype=nf4 on {device}", INSTALL):
        from bitsandbytes.functional import quantize_4bit
        from transformers import BitsAndBytesConfig

        quantize_4bit(torch.zeros(64, device=device), quant_type="nf4")
        scheme = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    dtype = torch.bfloat16
    return {"dtype": dtype, "quantization_config": scheme, "device_map": {"": device}}


def floating(llm_dtype: str) -> torch.dtype:
    if llm_dtype not in ("float32", "bfloat16"):
        raise DataError(f"llm_dtype={llm_dtype!r}: expected float32, bfloat16 or nf4")
    return getattr(torch, llm_dtype)


def cast(llm: nn.Module, llm_dtype: str) -> nn.Module:
    """The LLM with weights of llm_dtype. 4 bits are only checked: they come from `loading`.

    Raises DataError where some weights have 4 bits and llm_dtype is another, or the reverse.
    """
    types = {getattr(p, "quant_type", None) for p in llm.parameters()} - {None}
    if llm_dtype != "nf4":
        if types:
            raise DataError(f"the language model has 4 bits: --llm_dtype=nf4, and not {llm_dtype}")
        return llm.to(floating(llm_dtype))
    if types != {"nf4"}:
        raise DataError(
            "llm_dtype=nf4, and the language model has no such weights: give it by name or folder, "
            "or load it with the keywords that language.nf4.loading returns"
        )
    for name, module in llm.named_modules():
        four = getattr(getattr(module, "weight", None), "quant_type", None)
        if four and module.in_features % 64:
            # bitsandbytes (0.50) restores other weights on a CPU where a block goes beyond a row
            raise DataError(
                f"llm_dtype=nf4 takes layers whose input is a multiple of 64 wide, and {name} has "
                f"{module.in_features}: --llm_dtype=bfloat16"
            )
        # On some CPUs bitsandbytes (0.50) packs the weights anew at the first product without
        # gradients, and then has no gradients at all: validation would end the training.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return llm


def count(parameters: Iterable[nn.Parameter]) -> int:
    """The number of weights, also where two share a byte."""
    states = [(p, getattr(p, "quant_state", None)) for p in parameters]
    return sum(state.shape.numel() if state else p.numel() for p, state in states)
