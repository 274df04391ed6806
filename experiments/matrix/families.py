"""The families of language models that transformers ships, each as a small random model.

FAMILIES     what is tried: sizes that all share, and one line for each family's own settings
small        a family -> a model whose weights are all other than they begin
tokenizer    a few hundred tokens that all read differently
"""

import string
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)


class Family(NamedTuple):
    """A model_type of transformers, and the settings that make it small."""

    name: str
    type: str
    settings: dict = {}
    note: str = ""  # what of it could go wrong, or why it is refused
    refused: str = ""  # part of the message with which it is refused; empty: it works
    auto: type = AutoModelForCausalLM  # whose checkpoints have all of the family's parts


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
MANY = {"num_key_value_heads": 4}  # as many keys as queries
GATES = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
ROUTED |= {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = {"sliding_window": 6}  # shorter than every sample
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
LATENT |= {**MANY, "v_head_dim": 8, "head_dim": 4}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
DELTA |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
STATE = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
CAP = {"final_logit_softcapping": 3.0}  # the logits are larger: it bends them
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
TOWER |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
DEPTH = {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2}
DEPTH |= {"out_hidden_size": 32}


def wrapper(text: dict, vision: dict, **settings) -> dict:
    """Settings of a text model with a tower for images. SIZES go to the text model."""
    return {"text_config": text, "vision_config": vision, **settings}


FAMILIES = [
    Family("GPT-2", "gpt2"),
    Family("GPT-Neo", "gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 6}),
    Family("GPT-J", "gptj", {"rotary_dim": 4}),
    Family("CodeGen", "codegen", {"rotary_dim": 4}),
    Family("GPT-NeoX, Pythia", "gpt_neox"),
    Family("OPT", "opt", {"ffn_dim": 48, "word_embed_proj_dim": 16}, "projected embeddings"),
    Family("BLOOM", "bloom", note="ALiBi"),
    Family("MPT", "mpt", {"max_seq_len": 256}, "ALiBi"),
    Family("Falcon", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Family("Falcon RW", "falcon", {"alibi": True, "multi_query": False}, "ALiBi"),
    Family("StarCoder", "gpt_bigcode"),
    Family("StarCoder 2", "starcoder2", WINDOW, "window"),
    Family("StableLM", "stablelm"),
    Family("Phi-2", "phi"),
    Family("Phi-3, Phi-4", "phi3", WINDOW, "window"),
    Family("Phi-3.5 MoE", "phimoe", GATES, "noise in the router"),
    Family("Llama", "llama"),
    Family("Llama 4", "llama4",
           wrapper(GATES | {"intermediate_size_mlp": 48, "attention_chunk_size": 16}
                   | {"no_rope_layers": [1, 0]}, TOWER | {"vision_output_dim": 16}
                   | {"projector_input_dim": 16, "projector_output_dim": 16}),
           "the text model of a wrapper, chunks", auto=AutoModelForImageTextToText),
    Family("Mistral", "mistral", WINDOW, "window"),
    Family("Ministral 3", "ministral3"),
    Family("Mistral Small 3", "mistral3",
           wrapper({"model_type": "mistral"}, TOWER | {"model_type": "pixtral", "head_dim": 8}),
           "wrapper", auto=AutoModelForImageTextToText),
    Family("Mixtral", "mixtral", WINDOW | GATES, "window, noise in the router"),
    Family("Qwen2, Qwen2.5", "qwen2"),
    Family("Qwen2 MoE", "qwen2_moe", SHARED),
    Family("Qwen3", "qwen3"),
    Family("Qwen3 MoE", "qwen3_moe", EXPERTS),
    Family("Qwen3-Next", "qwen3_next", SHARED | DELTA, "linear attention"),
    Family("Qwen3.5", "qwen3_5", wrapper(DELTA, DEPTH),
           "the text model of a wrapper, linear attention", auto=AutoModelForImageTextToText),
    Family("Qwen3.5 MoE", "qwen3_5_moe_text", SHARED | DELTA, "linear attention"),
    Family("Qwen3-VL", "qwen3_vl", wrapper({"model_type": "qwen3_vl_text"}, DEPTH), "wrapper",
           auto=AutoModelForImageTextToText),
    Family("Gemma", "gemma"),
    Family("Gemma 2", "gemma2", WINDOW | CAP | {"attn_logit_softcapping": 1.0},
           "window, softcap on attention and logits"),
    Family("Gemma 3 text", "gemma3_text", MIXED | CAP, "window, softcap"),
    Family("Gemma 3", "gemma3", wrapper(MIXED, TOWER, mm_tokens_per_image=4), "wrapper, window"),
    Family("Gemma 3n", "gemma3n_text", MIXED | CAP | {"hidden_size_per_layer_input": 8}
           | {"laurel_rank": 4, "num_kv_shared_layers": 0, "intermediate_size": [48, 48]}
           | {"activation_sparsity_pattern": [0.0, 0.0]},
           note="every layer looks words up by their ids", refused="last hidden state"),
    Family("Gemma 4", "gemma4_text",
           MIXED | CAP | {"global_head_dim": 8, "hidden_size_per_layer_input": 0},
           "window, softcap"),
    Family("Gemma 4 E", "gemma4_text",
           MIXED | CAP | {"global_head_dim": 8, "hidden_size_per_layer_input": 8},
           note="every layer looks words up by their ids", refused="vectors"),
    Family("VaultGemma", "vaultgemma", WINDOW | CAP, "window, softcap"),
    Family("SmolLM3", "smollm3", {"no_rope_layers": [1, 0]}),
    Family("OLMo", "olmo"),
    Family("OLMo 2", "olmo2"),
    Family("OLMo 3", "olmo3", MIXED, "window"),
    Family("OLMoE", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    Family("Granite", "granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5}
           | {"embedding_multiplier": 3.0, "attention_multiplier": 0.2}, "scaled logits"),
    Family("Granite MoE", "granitemoe", GATES | {"logits_scaling": 4.0}, "scaled logits"),
    Family("Granite 4", "granitemoehybrid", GATES | STATE | {"logits_scaling": 4.0}
           | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
           "Mamba 2 layers, scaled logits"),
    Family("Cohere", "cohere", {"logit_scale": 0.25}, "scaled logits"),
    Family("Cohere 2", "cohere2", MIXED | {"logit_scale": 0.25}, "window, scaled logits"),
    Family("GLM-4 9B", "glm"),
    Family("GLM-4 0414", "glm4"),
    Family("GLM-4.5", "glm4_moe", ROUTED | {"n_group": 1}),
    Family("gpt-oss", "gpt_oss", MIXED | GATES, "sinks, window"),
    Family("DeepSeek-V2", "deepseek_v2", LATENT | ROUTED, "latent attention"),
    Family("DeepSeek-V3", "deepseek_v3", LATENT | ROUTED, "latent attention"),
    Family("MiniCPM3", "minicpm3", LATENT | {"dim_model_base": 16, "scale_emb": 3},
           "latent attention, scaled logits"),
    Family("MiniMax", "minimax", GATES
           | {"block_size": 8, "layer_types": ["linear_attention", "full_attention"]},
           note="padding changes its answers", refused="padding"),
    Family("MiniMax-M2", "minimax_m2", GATES | {"rotary_dim": 4}),
    Family("ERNIE 4.5", "ernie4_5"),
    Family("ERNIE 4.5 MoE", "ernie4_5_moe",
           {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16}),
    Family("EXAONE 4", "exaone4", MIXED, "window"),
    Family("Hunyuan", "hunyuan_v1_dense"),
    Family("Seed-OSS", "seed_oss"),
    Family("HyperCLOVA X", "hyperclovax", {"logits_scaling": 0.25}, "scaled logits"),
    Family("Nemotron", "nemotron"),
    Family("Nemotron-H", "nemotron_h", {"layers_block_type": ["mamba", "attention"]}
           | {"mamba_num_heads": 8, "mamba_head_dim": 8}
           | {"ssm_state_size": 8, "n_groups": 1}, "Mamba 2 layers"),
    Family("Apertus", "apertus"),
    Family("Arcee", "arcee"),
    Family("Helium", "helium"),
    Family("nanochat", "nanochat", CAP, "softcap"),
    Family("LFM2", "lfm2", {"layer_types": ["conv", "full_attention"]}
           | {"block_auto_adjust_ff_dim": False}, "convolutions"),
    Family("LFM2 MoE", "lfm2_moe", EXPERTS | {"layer_types": ["conv", "full_attention"]}
           | {"num_dense_layers": 1}, "convolutions"),
    Family("Mamba", "mamba", {"state_size": 8}, "recurrent"),
    Family("Mamba 2", "mamba2", {"num_heads": 8, "state_size": 8, "n_groups": 1}, "recurrent"),
    Family("Falcon-Mamba", "falcon_mamba", {"state_size": 8}, "recurrent"),
    Family("Falcon-H1", "falcon_h1", STATE | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.3}
           | {"embedding_multiplier": 2.0},
           note="words are scaled outside of the embedding", refused="last hidden state"),
    Family("Jamba", "jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8}
           | {"num_experts": 4}, "Mamba layers"),
    Family("Bamba", "bamba", STATE | {"attn_layer_indices": [1]}, "Mamba 2 layers"),
    Family("Zamba 2", "zamba2", {"mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8}
           | {"layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1}, "Mamba 2 layers"),
    Family("RecurrentGemma", "recurrent_gemma", {"num_key_value_heads": 1, "lru_width": 32}
           | {"attention_window_size": 6, "block_types": ["recurrent", "attention"]}
           | {"logits_soft_cap": 3.0},
           note="padding changes its answers", refused="padding"),
    Family("RWKV-4", "rwkv", {"attention_hidden_size": 32},
           note="does not know padding", refused="padding"),
    Family("XGLM", "xglm", {"ffn_dim": 48, "attention_heads": 4, "num_layers": 2, "d_model": 32}),
    Family("BioGPT", "biogpt"),
    Family("GPT", "openai-gpt",
           note="cannot generate from vectors", refused="vectors"),
    Family("BERT", "bert",
           note="sees the words that it should predict", refused="not causal"),
    Family("ModernBERT decoder", "modernbert-decoder", {"local_attention": 6},
           note="logits need more than the output embedding", refused="vectors"),
    Family("T5", "t5", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4},
           auto=AutoModelForSeq2SeqLM,
           note="an encoder and a decoder", refused="of the type t5"),
]  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without the bytes that are no letters: every token reads differently."""
    bpe, letters = Tokenizer(models.BPE()), string.ascii_letters + string.punctuation + "\u0120"
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    animals = ("dog", "cat", "cow", "frog", "crow", "duck", "sheep", "horse")
    lines = [f"A {animal} calls while it rains, near a river or over there." for animal in animals]
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<end>"],
        initial_alphabet=list(letters),
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", bos_token="<end>")


def settings_of(family: Family, words: int) -> dict:
    """The settings of a family, with those of SIZES that its text model knows."""
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    rows = words + 8  # the last ones stand for images and the like
    common = SIZES | ends | {"vocab_size": rows, "vocab_size_per_layer_input": rows}
    text = family.settings.get("text_config")
    known = AutoConfig.for_model((text or {}).get("model_type", family.type)).get_text_config()
    common = {k: v for k, v in common.items() if k in vars(known) or k in known.attribute_map}
    if text is None:
        return common | family.settings
    places = ("image", "video", "boi", "eoi", "audio")
    special = {f"{place}_token_id": words + i for i, place in enumerate(places)}
    special |= {f"{place}_token_index": words + i for i, place in enumerate(places)}
    return special | ends | family.settings | {"text_config": common | text}


def small(family: Family, words: int, seed: int = 0) -> nn.Module:
    """A model of the family for `words` tokens, which will drop out wherever it can.

    All its weights are other than they begin: an error behind a gate of zero would not show.
    """
    config = AutoConfig.for_model(family.type, **settings_of(family, words))
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for key, value in vars(part).items():
            if ("drop" in key or "jitter" in key) and isinstance(value, float):
                setattr(part, key, 0.1)
    torch.manual_seed(seed)
    model = family.auto.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.25)
            else:
                weight += 0.4 * torch.randn_like(weight)
    return model
