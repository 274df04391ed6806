"""A frozen causal language model of transformers, with LoRA."""

from dataclasses import dataclass

import torch.nn as nn
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

from disk import DataError, read_finite, read_json, reading
from language import nf4


@dataclass
class LanguageConfig:
    llm: str = "gpt2"  # any causal LM of transformers, by name or folder; frozen
    llm_dtype: str = "float32"  # of the frozen weights: float32 | bfloat16 | nf4
    template: str = "{audio}{instruction}"  # the prompt (language.prompt.Template)
    max_answer: int = 150  # longer answers are cut, in tokens
    lora_rank: int = 8  # section 4.1
    lora_alpha: int = 32  # the paper's "scaling factor 4" is lora_alpha / lora_rank
    lora_dropout: float = 0.1  # section 4.1
    lora_targets: str = ""  # comma-joined module names; empty: PEFT's default for the LLM


def freeze(llm: nn.Module, config: LanguageConfig) -> nn.Module:
    """The LLM without gradients and without dropout, in config.llm_dtype.

    Raises DataError where its logits are not its output embedding of the last hidden state.
    """
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(llm.config, name, None) not in (None, 1, 1.0):
            raise DataError(
                f"{config.llm}: logits with {name} are not supported, "
                "since the loss reads the output embedding directly"
            )
    for module in llm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return nf4.cast(llm, config.llm_dtype).requires_grad_(False)


def add_lora(llm: nn.Module, config: LanguageConfig) -> nn.Module:
    """Raises DataError where lora_targets are missing, or name no layer of the LLM."""
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_targets.split(",") if config.lora_targets else None,
        fan_in_fan_out=llm.config.model_type == "gpt2",
    )
    linear = {
        name.split(".")[-1]
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    with reading(
        f"LoRA on {config.llm}",
        f"name its layers: --lora_targets=NAME,NAME ({', '.join(sorted(linear))})",
    ):
        return get_peft_model(llm, lora)


def load_lora(llm: nn.Module, folder: str) -> nn.Module:
    """Raises DataError, naming the file, where the adapter cannot be read or does not fit."""
    read_json(f"{folder}/adapter_config.json")
    read_finite(f"{folder}/adapter_model.safetensors")
    with reading(folder, "is it the adapter of another language model?"):
        return PeftModel.from_pretrained(llm, folder, is_trainable=True)
