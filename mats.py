"""MATS: a CLAP vector and an instruction in, an answer out (Wang et al., ICML 2025, sections 3.1-3.2).

    Mapper   CLAP vector (B, D) -> 40 soft tokens (B, 40, D_llm)
    MATS     Mapper + a frozen causal language model with LoRA

While training the vector is a text's, with noise (Eq. 1-2); at inference it is an audio clip's, after Santa (Eq. 3).
What MATS sees of either is only the vector: nothing here knows about CLAP.
"""

import json
import os
import pickle
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from santa import Santa

# SDPA that is told "causal" and given no mask. transformers' own asks whether it may leave the mask out, which waits for the GPU at each step,
# and when compiled (before torch 2.14) always builds one, which FlashAttention cannot take.
AttentionInterface.register("causal", sdpa_attention_forward)


@dataclass
class MATSConfig:
    llm: str = "gpt2"  # any causal LM of transformers, by name or folder; frozen
    llm_dtype: str = "float32"  # of the frozen weights: float32 | bfloat16
    clap: str = "microsoft/msclap"  # whose space the vectors are in (clap.load_clap)
    dim: int = 1024  # of that space
    template: str = "{audio}{instruction}"  # see Template
    max_answer: int = 150  # longer answers are cut, in tokens
    prefix: int = 40  # soft tokens that the LLM sees
    tokens: int = 40  # tokens that the vector is spread over before the transformer
    width: int = 1024  # of the mapper
    layers: int = 8
    heads: int = 8
    lora_rank: int = 8
    lora_alpha: int = 32  # the paper's "scaling factor 4" is lora_alpha / lora_rank
    lora_dropout: float = 0.1
    lora_targets: str = ""  # comma-joined module names; empty: PEFT's default for the architecture


class Template:
    """Tokens around the prefix. `{audio}` in the template is where the prefix goes, `{instruction}` the instruction,
    `{tag}` the sample's tag (facts of the released code: one per dataset), empty where it has none.

        "{audio}{instruction}"                                                          GPT-2, as in Eq. 1
        "USER: <Speech>{audio}</Speech> {tag} {instruction}\\nASSISTANT:"               Vicuna, as released

    The answer follows after a space, is cut at `max_answer` tokens, and ends with the end-of-text token.
    """

    def __init__(self, template, tokenizer, max_answer=150, max_prompt=512):
        if template.count("{audio}") != 1 or "{instruction}" not in template:
            raise ValueError(
                f"template {template!r} needs {{audio}} once, and {{instruction}} after it"
            )
        self.before, self.after = template.split("{audio}")
        if "{instruction}" in self.before:
            raise ValueError(
                f"template {template!r}: what comes before {{audio}} is the same for all samples, "
                "so {instruction} must come after it"
            )
        self.tokenizer, self.max_answer, self.max_prompt = tokenizer, max_answer, max_prompt
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end-of-text token, and an answer could never end"
            )
        start = (
            [tokenizer.bos_token_id]
            if tokenizer.bos_token_id not in (None, tokenizer.eos_token_id)
            else []
        )
        self.head = (
            start + self.ids([self.before])[0]
        )  # what precedes the prefix, with <s> where there is one
        # SentencePiece puts the space in by itself; byte-level BPE wants it said.
        self.space = "" if tokenizer.tokenize("a")[0].startswith("\u2581") else " "

    def ids(self, texts):
        each = list(dict.fromkeys(texts))  # instructions and labels are few
        known = (
            self.tokenizer(
                each,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            if each
            else []
        )
        known = dict(zip(each, known))
        return [known[t] for t in texts]

    def prompts(self, instructions, tags=None):
        """Token ids after the prefix, one list per instruction."""
        tags = tags or [""] * len(instructions)
        texts = [
            self.after.replace("{tag} ", f"{t} " if t else "")
            .replace("{tag}", t)
            .replace("{instruction}", i)
            for i, t in zip(instructions, tags)
        ]
        return [ids[: self.max_prompt] for ids in self.ids(texts)]

    def encode(self, samples):
        """Per sample (ids, number of them that are prompt): head + prompt + answer + end; the prefix goes after `head`."""
        prompts = self.prompts(
            [s["instruction"] for s in samples], [s.get("tag") or "" for s in samples]
        )
        answers = [
            s["answer"][0] if isinstance(s["answer"], list) else s["answer"] for s in samples
        ]
        answers = self.ids([self.space + a.strip() for a in answers])
        return [
            (
                self.head + p + a[: self.max_answer] + [self.tokenizer.eos_token_id],
                len(self.head) + len(p),
            )
            for p, a in zip(prompts, answers)
        ]


class Block(nn.Module):
    """Pre-norm transformer layer with ReLU and MLP ratio 2; no bias on q, k, v; no dropout."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = (
            nn.Linear(width, width, bias=False),
            nn.Linear(width, 2 * width, bias=False),
        )
        self.out = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, last=0):
        """x (B, T, W) -> (B, T, W), or (B, last, W): the last positions only, which attend to all."""
        h = self.norm1(x)
        x, g = x[:, -last:], h[:, -last:]  # [:, -0:] is all of it
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(
            1, 2
        )  # (B, heads, T, W / heads)
        k, v = self.kv(h).chunk(2, dim=-1)
        a = F.scaled_dot_product_attention(split(self.q(g)), split(k), split(v))
        x = x + self.out(a.transpose(1, 2).flatten(2))
        return x + self.fc2(F.relu(self.fc1(self.norm2(x))))


class Mapper(nn.Module):
    """The transformer that turns a CLAP vector into soft tokens (section 3.2; details as in the released weights).

    (B, dim_in), of any length -> (B, prefix, dim_out). The vector becomes `tokens` tokens, `prefix` learned queries follow
    them, and the queries' outputs are projected to the LLM's width. No positions, no final norm.
    """

    def __init__(self, dim_in, width, dim_out, prefix=40, tokens=40, layers=8, heads=8):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.linear = nn.Linear(dim_in, tokens * width)
        self.queries = nn.Parameter(torch.randn(prefix, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.proj = nn.Linear(width, dim_out)
        self.tokens, self.prefix = tokens, prefix

    def forward(self, z):
        z = F.normalize(z, dim=-1)
        x = self.linear(z).unflatten(-1, (self.tokens, -1))  # (B, tokens, W)
        x = torch.cat(
            [x, self.queries.expand(len(z), -1, -1).to(x.dtype)], dim=1
        )  # (B, tokens + prefix, W)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.proj(self.blocks[-1](x, last=self.prefix))  # (B, prefix, D_llm)


class MATS(nn.Module):
    """Mapper + frozen causal LM + LoRA. `llm` and `tokenizer` may be given, else config.llm is loaded.

    Trained are the mapper and the LoRA weights, nothing else. The LLM's own dropout is switched off: it is frozen.
    """

    def __init__(self, config: MATSConfig, llm=None, tokenizer=None, lora=None):
        super().__init__()
        self.config, self.santa = config, None
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(config.llm)
        self.template = Template(config.template, self.tokenizer, config.max_answer)
        llm = llm or AutoModelForCausalLM.from_pretrained(
            config.llm, dtype=getattr(torch, config.llm_dtype)
        )
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(llm.config, name, None) not in (None, 1, 1.0):
                raise ValueError(
                    f"{config.llm}: logits with {name} are not supported, since the loss reads the output "
                    "embedding directly"
                )
        for module in llm.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        llm.to(getattr(torch, config.llm_dtype)).requires_grad_(False)
        if lora:
            self.llm = PeftModel.from_pretrained(llm, lora, is_trainable=True)
        else:
            self.llm = get_peft_model(
                llm,
                LoraConfig(
                    task_type="CAUSAL_LM",
                    r=config.lora_rank,
                    lora_alpha=config.lora_alpha,
                    lora_dropout=config.lora_dropout,
                    target_modules=config.lora_targets.split(",") if config.lora_targets else None,
                    fan_in_fan_out=llm.config.model_type == "gpt2",
                ),
            )
        self.mapper = Mapper(
            config.dim,
            config.width,
            self.embed.embedding_dim,
            config.prefix,
            config.tokens,
            config.layers,
            config.heads,
        )
        self.maskless = llm.config._attn_implementation == "sdpa" and not getattr(
            llm.config, "sliding_window", None
        )
        limit = getattr(llm.config, "max_position_embeddings", None)
        self.room = (
            limit or 1 << 30
        ) - config.prefix  # positions left for the prompt and the answer

    @property
    def embed(self):
        return self.llm.get_base_model().get_input_embeddings()

    @property
    def device(self):
        return self.mapper.queries.device

    def trainable(self):
        """name -> parameter, of all that is trained."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def train(self, mode=True):
        """In training all padding stands on the right, where causal attention needs no mask; generation pads on the left, and does."""
        if self.maskless:
            self.llm.get_base_model().set_attn_implementation("causal" if mode else "sdpa")
        return super().train(mode)

    def inputs(self, z, ids):
        """z (B, D), ids (B, T) -> (B, P + T, D_llm): the prefix goes in after the template's head."""
        head = len(self.template.head)
        words, prefix = self.embed(ids), self.mapper(z)
        return torch.cat([words[:, :head], prefix.to(words.dtype), words[:, head:]], dim=1)

    def forward(self, z, ids, answer):
        """Mean cross-entropy over the answer tokens (Eq. 2).

        z (B, D): CLAP vectors, noise included; ids (B, T): head + prompt + answer + end, padded on the right;
        answer (N,): where in ids.view(-1) the answers' tokens stand. Logits are computed for them and for nothing else. (Places and not a
        mask, whose count a GPU would have to be waited for: no step of this waits.)
        """
        P, T = self.config.prefix, ids.shape[1]
        model = self.llm.get_base_model()
        # Padding stands to the right of all that counts, so under causal attention no mask is needed.
        hidden = model.base_model(
            inputs_embeds=self.inputs(z, ids), use_cache=False
        ).last_hidden_state  # (B, P + T, D)
        hidden = hidden.flatten(0, 1).index_select(
            0, answer + (answer // T + 1) * P - 1
        )  # (N, D), one before each answer token
        logits = model.get_output_embeddings()(hidden)  # (N, V)
        return F.cross_entropy(logits.float(), ids.flatten()[answer])

    @torch.no_grad()
    def generate(self, z, instructions, tags=None, batch_size=64, progress=None, **decoding):
        """Answers as a list of B strings.

        z (B, D): bridged CLAP vectors; instructions: B strings; decoding: keywords of transformers' generate (greedy,
        and at most `max_answer` new tokens, unless they say otherwise). Prompts are sorted by length, batched, and padded on
        the left as a whole, so an answer does not depend on what else is in its batch. progress: called with each
        batch's size.
        """
        was_training = self.training
        self.eval()
        decoding = {
            "max_new_tokens": self.config.max_answer,
            "do_sample": False,
            "num_beams": 1,
        } | decoding
        # Given by keyword, transformers spares the first tokens of a left-padded answer the penalty (5.23), so that it would
        # depend on the batch; handed over as a processor it counts every generated token.
        penalty = decoding.pop("repetition_penalty", None)
        processors = LogitsProcessorList(
            [RepetitionPenaltyLogitsProcessor(float(penalty))] if penalty else []
        )
        head, pad = self.template.head, self.tokenizer.eos_token_id
        prompts = [head + p for p in self.template.prompts(list(instructions), tags)]
        for p in prompts:
            if len(p) + decoding["max_new_tokens"] > self.room:
                raise ValueError(
                    f"a prompt of {len(p)} tokens and {decoding['max_new_tokens']} new ones do not fit the "
                    f"{self.room} positions that {self.config.llm} has left; lower max_new_tokens"
                )
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            T = max(len(prompts[i]) for i in rows)
            left = torch.tensor([T - len(prompts[i]) for i in rows], device=self.device)
            ids = torch.tensor(
                [prompts[i] + [pad] * (T - len(prompts[i])) for i in rows], device=self.device
            )
            x = self.inputs(
                z[rows].to(self.device), ids.view(len(rows), T)
            )  # (b, P + T, D), padded on the right
            steps = torch.arange(x.shape[1], device=self.device)
            x = x.gather(
                1, ((steps - left[:, None]) % x.shape[1])[..., None].expand_as(x)
            )  # rotated: padded on the left
            out = self.llm.generate(
                inputs_embeds=x,
                attention_mask=(steps >= left[:, None]).long(),
                logits_processor=processors,
                pad_token_id=pad,
                eos_token_id=pad,
                **decoding,
            )
            for i, text in zip(rows, self.tokenizer.batch_decode(out, skip_special_tokens=True)):
                answers[i] = text.strip()
            if progress:
                progress(len(rows))
        self.train(was_training)
        return answers

    def flops(self, text, answer):
        """FLOP of a training step per sample with `text` positions of text, `answer` of them the answer's: 2 per weight and position forward,
        and as many backward for each gradient that is needed, the weight's and the input's. Attention's products, 2 to 3 % more, are not counted."""
        count = lambda module: sum(p.numel() for p in module.parameters())
        m, c, llm = self.mapper, self.config, self.llm.get_base_model()
        last = m.blocks[-1]  # of which the tokens need keys and values alone
        blocks = (
            count(m.blocks) * c.prefix + (count(m.blocks) - count(last) + count(last.kv)) * c.tokens
        )
        return (
            4 * count(m.linear)
            + 6 * (blocks + count(m.proj) * c.prefix)
            + 4 * (count(llm.base_model) - count(self.embed)) * (c.prefix + text)
            + 4 * count(llm.get_output_embeddings()) * answer
        )

    # --- files ---

    def save_pretrained(self, directory, llm=None):
        """config.json, mapper.safetensors, lora/ (which peft itself can load), and Santa's memory where there is one.

        The frozen LLM is not saved but named: a local folder by its path from `directory`, so that both can move together.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = asdict(self.config)
        config = {k: config[k] for k in (f.name for f in fields(MATSConfig))}
        for key in ("llm", "clap"):
            if os.path.exists(config[key]):
                config[key] = os.path.relpath(config[key], directory)
        (directory / "config.json").write_text(json.dumps(config, indent=1))
        save_file(
            {k: v.contiguous() for k, v in self.mapper.state_dict().items()},
            directory / "mapper.safetensors",
        )
        peft_config = self.llm.peft_config["default"]
        name, peft_config.base_model_name_or_path = (
            peft_config.base_model_name_or_path,
            config["llm"],
        )
        self.llm.save_pretrained(directory / "lora", save_embedding_layers=False)
        peft_config.base_model_name_or_path = name
        if self.santa is not None:
            self.santa.save(directory / "santa.safetensors")

    @classmethod
    def from_pretrained(cls, directory, llm=None, tokenizer=None):
        """A model as save_pretrained wrote it, in eval mode. Raises FileNotFoundError, naming what is missing."""
        directory = Path(directory)
        for name in ("config.json", "mapper.safetensors", "lora"):
            if not (directory / name).exists():
                raise FileNotFoundError(
                    f"{directory} holds no trained MATS: {name} is missing (train one: torchrun train.py)"
                )
        config = MATSConfig(**json.loads((directory / "config.json").read_text()))
        for key in ("llm", "clap"):
            local = os.path.normpath(directory / getattr(config, key))
            if os.path.exists(local):
                setattr(config, key, local)
        model = cls(config, llm, tokenizer, lora=str(directory / "lora"))
        model.mapper.load_state_dict(load_file(directory / "mapper.safetensors"))
        if (directory / "santa.safetensors").exists():
            model.santa = Santa.load(directory / "santa.safetensors")
        return model.eval()

    def import_official(self, path):
        """Fills mapper and LoRA from the released checkpoint (`LBanBan/MATS`), whose dict `model` holds audio_mapper.*,
        audio_llama_proj.*, llama_model.*lora_{A,B}* and an unused ln_audio.*.

        Raises ValueError when a tensor is missing, unknown or of another shape, or when the file cannot be read without
        running code from it.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        except pickle.UnpicklingError as e:
            raise ValueError(
                f"{path} holds more than tensors ({e}); in a sandbox, load it in full once and save "
                "{'model': checkpoint['model']} alone with torch.save"
            ) from e
        mapper, lora, unknown = {}, {}, []
        names = {
            "linear": "linear",
            "prefix_const": "queries",
            "attn.to_queries": "q",
            "attn.to_keys_values": "kv",
            "attn.project": "out",
            "mlp.fc1": "fc1",
            "mlp.fc2": "fc2",
            "norm1": "norm1",
            "norm2": "norm2",
        }
        for key, tensor in state.items():
            part, _, rest = key.partition(".")
            if part == "audio_llama_proj":
                mapper[f"proj.{rest}"] = tensor
            elif part == "audio_mapper":
                where, rest = (
                    ("", rest)
                    if not rest.startswith("transformer.layers.")
                    else (f"blocks.{rest.split('.')[2]}.", rest.split(".", 3)[3])
                )
                old = next((n for n in names if rest == n or rest.startswith(n + ".")), None)
                mapper[where + (names[old] + rest[len(old) :] if old else rest)] = tensor
            elif part == "llama_model" and ".lora_" in rest:
                lora[rest.replace(".default.", ".")] = tensor
            elif part != "ln_audio":
                unknown.append(key)
        try:
            self.mapper.load_state_dict(mapper)
        except RuntimeError as e:
            raise ValueError(f"{path} does not fit this mapper: {e}") from e
        result = set_peft_model_state_dict(self.llm, lora)
        missing = [k for k in result.missing_keys if "lora_" in k]
        if missing or result.unexpected_keys or unknown:
            raise ValueError(
                f"{path} does not fit this model: missing {missing[:3]}, "
                f"unknown {(list(result.unexpected_keys) + unknown)[:3]}"
            )
