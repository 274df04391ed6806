"""MATS: a CLAP vector and an instruction in, an answer out (Wang et al., ICML 2025, 3.1-3.2).

    Mapper   CLAP vector (B, D) -> 40 soft tokens (B, 40, D_llm)
    MATS     Mapper + a prompt + a frozen causal language model with LoRA (language/)

While training the vector is a text's, with noise (Eq. 1-2). At inference it is an audio clip's,
after Santa (Eq. 3). MATS sees only the vector: nothing here knows about CLAP.
"""

import json
import os
import pickle
import sys
import tempfile
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, repeat
from peft import set_peft_model_state_dict
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from disk import (
    DataError,
    fingerprint,
    is_code,
    is_path,
    libraries_write,
    read_finite,
    read_json,
    reading,
    share,
    write_atomic,
    write_tensors,
)
from hub import REQUIRED, find_model, is_cached
from hub.push import push, same_weights
from language import nf4
from language.model import (
    LanguageConfig,
    add_lora,
    check,
    check_tokens,
    decoder_of,
    forget_decoding,
    load,
    load_lora,
    train_lora,
    unembed,
)
from language.prompt import Template, first_head
from santa import Santa


@dataclass
class MATSConfig(LanguageConfig):
    clap: str = "microsoft/msclap"  # whose space the vectors are in (clap.load_clap)
    dim: int = 1024  # of that space
    prefix: int = 40  # soft tokens that the LLM sees
    tokens: int = 40  # tokens that the vector is spread over before the transformer
    width: int = 1024  # of the mapper
    layers: int = 8  # of the mapper
    heads: int = 8  # of the mapper


class Block(nn.Module):
    """Pre-norm transformer layer with ReLU and MLP ratio 2; no bias on q, k, v; no dropout."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, last: int = 0) -> Tensor:
        """x (B, T, W) -> (B, T, W), or of its last positions alone (B, last, W)."""
        h = self.norm1(x)
        x, queries = x[:, -last:], self.q(h[:, -last:])  # [:, -0:] is all of it
        keys, values = self.kv(h).chunk(2, dim=-1)
        q, k, v = (
            rearrange(part, "b t (h d) -> b h t d", h=self.heads)
            for part in (queries, keys, values)
        )
        a = F.scaled_dot_product_attention(q, k, v)  # (B, heads, last or T, W / heads)
        x = x + self.out(rearrange(a, "b h t d -> b t (h d)"))
        return x + self.fc2(F.relu(self.fc1(self.norm2(x))))


class Mapper(nn.Module):
    """CLAP vectors (B, dim_in), of any length -> soft tokens (B, prefix, dim_out). Section 3.2.

    The vector becomes `tokens` tokens, and `prefix` learned queries follow them. The queries'
    outputs are projected to the LLM's width. No positions, no final norm: details as in the
    released weights. The soft tokens start several times longer than words; beginning at their
    length made the first hundred updates no faster, on the tiny world and on SmolLM2-135M. Raises
    DataError where `heads` does not divide `width`, and on a size below 1.
    """

    def __init__(
        self, dim_in: int, width: int, dim_out: int, prefix=40, tokens=40, layers=8, heads=8
    ):
        super().__init__()
        sizes = dict(dim=dim_in, width=width, prefix=prefix, tokens=tokens, layers=layers)
        for name, size in (sizes | {"heads": heads}).items():
            if size < 1:
                raise DataError(f"{name}={size}: expected 1 or more")
        if width % heads:
            raise DataError(f"width {width} is not a multiple of heads {heads}")
        self.linear = nn.Linear(dim_in, tokens * width)
        self.queries = nn.Parameter(torch.randn(prefix, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.proj = nn.Linear(width, dim_out)
        self.tokens, self.prefix = tokens, prefix

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(F.normalize(z, dim=-1))
        x = rearrange(x, "b (t w) -> b t w", t=self.tokens)
        queries = repeat(self.queries, "p w -> b p w", b=len(z)).to(x.dtype)
        x = torch.cat([x, queries], dim=1)  # (B, tokens + prefix, W)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.proj(self.blocks[-1](x, last=self.prefix))  # (B, prefix, dim_out)


class MATS(nn.Module):
    """Mapper + frozen causal LM + LoRA. Only the mapper and LoRA are trained.

    llm, tokenizer: objects to use instead of loading config.llm. lora: a folder of trained LoRA
    weights. Raises DataError on a template, tokenizer or LLM that cannot be used.

    Attributes, each None where a model has none: `santa`, the memory that a trained model brings
    along; `probe`, what the encoder of its vectors makes of a few texts (encoders.checks.probe);
    `history`, what train.py says of the run, for the model's card (hub/card.py). `ends` are the
    tokens at which an answer ends, those of the model's own turns included.
    """

    def __init__(self, config: MATSConfig, llm=None, tokenizer=None, lora: str | None = None):
        super().__init__()
        self.config, self.santa, self.probe = config, None, None
        self.history, self.folder = None, None  # folder: where it was read from
        self.tokenizer, llm = load(config, llm, tokenizer)
        text_config = llm.config.get_text_config()
        positions = getattr(text_config, "max_position_embeddings", None) or 1 << 30
        self.room = positions - config.prefix  # left for the prompt and the answer
        self.template = self.fitting_template()
        check_tokens(self.template, llm, config.llm)
        self.ends = list(dict.fromkeys([*self.template.end, *forget_decoding(llm)]))
        checked = check(llm, config.llm, config.prefix + self.template.longest)
        self.maskless, self.rescale = checked
        self.llm = load_lora(llm, lora) if lora else add_lora(llm, config)
        shape = config.prefix, config.tokens, config.layers, config.heads
        self.mapper = Mapper(config.dim, config.width, self.embed.embedding_dim, *shape)

    def fitting_template(self) -> Template:
        """The prompt, so short that it fits the LLM's positions with the longest answer.

        Raises DataError where less than 16 tokens would be left for what follows the prefix.
        """
        config = self.config
        template = Template(config.template, self.tokenizer, config.max_answer)
        over = template.longest - self.room
        if over > 0:
            template.max_prompt -= over
        if template.max_prompt < 16:
            raise DataError(
                f"{config.llm} has {self.room + config.prefix} positions: prefix={config.prefix} "
                f"and max_answer={config.max_answer} leave no room for a prompt; lower them"
            )
        return template

    @property
    def embed(self) -> nn.Embedding:
        return self.llm.get_base_model().get_input_embeddings()

    @property
    def device(self) -> torch.device:
        return self.mapper.queries.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """All trained parameters by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def train(self, mode: bool = True):
        """Training pads on the right: causal attention needs no mask there. Generation does."""
        if self.maskless:
            self.llm.get_base_model().set_attn_implementation("causal" if mode else "sdpa")
        super().train(mode)
        train_lora(self.llm, mode)
        return self

    def inputs(self, z: Tensor, ids: Tensor) -> Tensor:
        """z (B, D), ids (B, T) -> (B, P + T, D_llm): the prefix follows the template's head."""
        head = len(self.template.head)
        words, prefix = self.embed(ids), self.mapper(z)
        return torch.cat([words[:, :head], prefix.to(words.dtype), words[:, head:]], dim=1)

    def forward(self, z: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
        """Mean cross-entropy over the answer tokens (Eq. 2), a scalar.

        z (B, D): CLAP vectors, noise included; ids (B, T): head + prompt + answer + end, padded on
        the right; answer (N,): indices of the answers' tokens into ids.view(-1). Only these get
        logits. Indices rather than a mask: counting a mask's ones would force a GPU sync.
        """
        P, T = self.config.prefix, ids.shape[1]
        llm = self.llm.get_base_model()
        # All padding stands to the right of the answers: under causal attention, no mask is needed.
        x = self.inputs(z, ids)
        decoder = decoder_of(llm)
        hidden = decoder(inputs_embeds=x, use_cache=False).last_hidden_state  # (B, P + T, D)
        # Token t of row b has index a = b T + t. It stands at t + P, behind the prefix, and the
        # position before it predicts it. With all rows joined that is position
        #     b (P + T) + t + P - 1  =  a + (b + 1) P - 1,   where b = a // T.
        before = answer + (answer // T + 1) * P - 1
        hidden = rearrange(hidden, "b t d -> (b t) d").index_select(0, before)  # (N, D)
        logits = self.rescale(unembed(llm, hidden))  # (N, V)
        return F.cross_entropy(logits.float(), ids.flatten()[answer])

    @torch.no_grad()
    def generate(
        self, z: Tensor, instructions: list, tags=None, batch_size=64, **decoding
    ) -> list[str]:
        """B answers. An answer never depends on the rest of its batch.

        z (B, D): bridged CLAP vectors; decoding: keywords of transformers' generate (by default
        greedy, at most `max_answer` new tokens). Raises DataError where a prompt and its answer
        exceed the LLM's positions.
        """
        was_training = self.training
        if was_training:
            self.eval()
        greedy = {"max_new_tokens": self.config.max_answer, "do_sample": False, "num_beams": 1}
        decoding = greedy | decoding
        prompts = [self.template.head + p for p in self.template.prompts(list(instructions), tags)]
        longest, new = max(map(len, prompts), default=0), decoding["max_new_tokens"]
        if longest + new > self.room:
            raise DataError(
                f"a prompt of {longest} tokens and {new} new ones do not fit the {self.room} "
                f"positions that {self.config.llm} has left: shorten the question, or lower "
                "max_new_tokens"
            )
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            said = self.generate_batch(z[rows], [prompts[i] for i in rows], decoding)
            for i, text in zip(rows, said):
                answers[i] = text.strip()
        if was_training:
            self.train()
        return answers

    def generate_batch(self, z: Tensor, prompts: list[list[int]], decoding: dict) -> list[str]:
        """Answers to b prompts, padded on the left as a whole: head and prefix are shifted too."""
        T, pad = max(map(len, prompts)), self.tokenizer.eos_token_id
        ids = torch.tensor([ids + [pad] * (T - len(ids)) for ids in prompts], device=self.device)
        left = torch.tensor([[T - len(ids)] for ids in prompts], device=self.device)  # (b, 1)
        x = self.inputs(z.to(self.device), ids.view(len(prompts), T))  # padded on the right
        steps = torch.arange(x.shape[1], device=self.device)
        source = repeat((steps - left) % len(steps), "b t -> b t d", d=x.shape[2])
        x = x.gather(1, source)  # rotated: padded on the left, (b, P + T, D_llm)
        # Given by keyword, transformers (5.23) spares the first tokens of a left-padded answer the
        # penalty, and the answer would depend on its batch. A processor counts every new token.
        decoding = dict(decoding)
        penalty = decoding.pop("repetition_penalty", None)
        processors = [RepetitionPenaltyLogitsProcessor(float(penalty))] if penalty else []
        out = self.llm.generate(
            inputs_embeds=x,
            attention_mask=(steps >= left).long(),
            logits_processor=LogitsProcessorList(processors),
            pad_token_id=pad,
            eos_token_id=self.ends,
            **decoding,
        )
        said = [list(takewhile(lambda token: token not in self.ends, row)) for row in out.tolist()]
        return self.tokenizer.batch_decode(said, skip_special_tokens=True)

    def flops(self, text: float, answer: float) -> float:
        """FLOP of a training step per sample of `text` positions, of which `answer` the answer's.

        2 per weight and position forward, and 2 backward for each gradient that is needed: the
        weight's and the input's. Attention's products, 2 to 3 % more, are not counted.
        """

        def count(module):
            return nf4.count(module.parameters())

        mapper, llm = self.mapper, self.llm.get_base_model()
        blocks, last = count(mapper.blocks), mapper.blocks[-1]
        on_queries = blocks + count(mapper.proj)
        on_tokens = blocks - count(last) + count(last.kv)  # the last block drops the tokens
        trained = on_queries * self.config.prefix + on_tokens * self.config.tokens
        frozen = (count(decoder_of(llm)) - count(self.embed)) * (self.config.prefix + text)
        head = count(llm.get_output_embeddings()) * answer
        return 4 * count(mapper.linear) + 6 * trained + 4 * (frozen + head)

    # --- files ---

    def save_pretrained(self, directory) -> None:
        """Writes config.json, mapper.safetensors, lora/ (peft can load it), and Santa's memory.

        And training.json, where the model knows its run.

        The frozen LLM and CLAP are not saved but named. A local folder is named by its path from
        `directory`, so that both can move together.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {f.name: getattr(self.config, f.name) for f in fields(MATSConfig)}
        config["template"] = self.template.text  # of "chat", as it is written
        for key in ("llm", "clap"):
            if os.path.exists(config[key]):
                path = os.path.relpath(config[key], directory)
                config[key] = path if path.startswith("..") else f"./{path}"
        llm = self.config.llm
        made = {
            "probe": self.probe,
            "llm_hash": fingerprint(llm) if os.path.isdir(llm) else None,
            "memory": self.santa is not None,
            "head": self.template.head,
        }
        write_atomic(directory / "config.json", json.dumps(config | made, indent=1).encode())
        mapper = {name: t.contiguous() for name, t in self.mapper.state_dict().items()}
        write_tensors(mapper, directory / "mapper.safetensors")
        peft_config = self.llm.peft_config["default"]
        loaded_from = peft_config.base_model_name_or_path
        peft_config.base_model_name_or_path = config["llm"]
        with libraries_write():
            self.llm.save_pretrained(directory / "lora", save_embedding_layers=False)
        share(directory / "lora" / "adapter_model.safetensors")
        peft_config.base_model_name_or_path = loaded_from
        if self.santa is not None:
            self.santa.save(directory / "santa.safetensors")
        if self.history is not None:
            write_atomic(directory / "training.json", json.dumps(self.history, indent=1).encode())

    @classmethod
    def from_pretrained(cls, directory, llm=None, tokenizer=None) -> "MATS":
        """A model as save_pretrained wrote it, in eval mode.

        directory: its folder, or its name on the hub, user/name or user/name@revision. Raises
        DataError, naming the file, where one is missing or damaged, and naming the folder where the
        LLM has gone.
        """
        directory = find_model(directory)
        config, made = read_config(directory, needs=("llm",) if llm is None else ())
        model = cls(config, llm, tokenizer, lora=str(directory / "lora"))
        model.probe, model.folder = made["probe"], directory
        model.history = read_history(directory / "training.json")
        head = made["head"]  # none before the prefix is [], and None is an older model's
        model.template.head = first_head(model.template) if head is None else head
        mapper = read_finite(directory / "mapper.safetensors")
        fit = "it does not fit the sizes in config.json: are both of the same model?"
        with reading(str(directory / "mapper.safetensors"), fit):
            model.mapper.load_state_dict(mapper)
        if (directory / "santa.safetensors").exists():
            model.santa = Santa.load(directory / "santa.safetensors")
        return model.eval()

    def push_to_hub(
        self,
        name: str,
        private: bool = False,
        branch: str | None = None,
        token: str | None = None,
        commit_message: str = "Push a model of MATS",
    ) -> str:
        """The model's page on the hub, once it is there with its card, as hub.push does it.

        The card tells the scores where the model is still as it was read. Raises DataError.
        """
        with tempfile.TemporaryDirectory() as saved:
            self.save_pretrained(saved)
            as_read = self.folder and same_weights(self.folder, Path(saved))
            run = self.folder if as_read else None
            return push(saved, name, private, branch, token, commit_message, run)

    def import_official(self, path) -> None:
        """Fills mapper and LoRA from the released checkpoint (`LBanBan/MATS`).

        Its dict `model` holds audio_mapper.*, audio_llama_proj.*, llama_model.*lora_{A,B}*, and an
        unused ln_audio.*. Raises DataError where a tensor is missing, unknown or of another shape,
        or where the file cannot be read without running code from it.
        """
        with reading(str(path), "it should be the released checkpoint, a dict with `model`"):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)["model"]
            except pickle.UnpicklingError as e:
                raise DataError(
                    f"{path} holds more than tensors ({e}); in a sandbox, load it in full once and "
                    "save {'model': checkpoint['model']} alone with torch.save"
                ) from e
        mapper, lora, unknown = {}, {}, []
        for key, tensor in state.items():
            part, _, rest = key.partition(".")
            if part == "audio_llama_proj":
                mapper[f"proj.{rest}"] = tensor
            elif part == "audio_mapper":
                mapper[our_name(rest)] = tensor
            elif part == "llama_model" and ".lora_" in rest:
                lora[rest.replace(".default.", ".")] = tensor
            elif part != "ln_audio":
                unknown.append(key)
        try:
            self.mapper.load_state_dict(mapper)
        except RuntimeError as e:
            raise DataError(f"{path} does not fit this mapper: {e}") from e
        result = set_peft_model_state_dict(self.llm, lora)
        missing = [key for key in result.missing_keys if "lora_" in key]
        unknown = [*result.unexpected_keys, *unknown]
        if missing or unknown:
            raise DataError(
                f"{path} does not fit this model: missing {missing[:3]}, unknown {unknown[:3]}"
            )


def read_history(path: Path) -> dict | None:
    """What train.py said of the run. None where there is nothing, or it is damaged, which is said.

    Only the model's card needs it.
    """
    try:
        return read_json(path) if path.exists() else None
    except DataError as error:
        print(f"{error}; the model's card will say less", file=sys.stderr)
        return None


def read_config(directory: Path, needs=("llm", "clap"), clap: str = "") -> tuple[MATSConfig, dict]:
    """The config of a saved model, folders as they are seen from here; and what it was made with.

    That is {"probe", "llm_hash", "memory", "head"}, each None in an older model. needs: fields
    whose folders must be there. clap: instead of the one in the config, as whoever runs it says.
    Raises DataError where one is not, or holds another language model, or a file is missing or
    damaged; and where a CLAP is needed and the config's is module:factory: a model never makes us
    import code.
    """
    require_files(directory)
    path = directory / "config.json"
    values = read_json(path)
    made = {key: values.pop(key, None) for key in ("probe", "llm_hash", "memory", "head")}
    head = made["head"] or []
    if not isinstance(head, list) or not all(isinstance(token, int) for token in head):
        raise DataError(f"{path}: head is {made['head']!r}, expected token ids")
    if made["memory"] and not (directory / "santa.safetensors").exists():
        raise DataError(f"{directory / 'santa.safetensors'} is missing: copy the whole folder")
    with reading(str(path), "is it of a newer version, or another program's?"):
        config = MATSConfig(**values)
    for f in fields(MATSConfig):
        if type(getattr(config, f.name)) is not type(f.default):
            raise DataError(f"{path}: {f.name} is {values[f.name]!r}, expected {f.type.__name__}")
    if clap:
        needs = tuple(key for key in needs if key != "clap")
    elif "clap" in needs:
        refuse_code(directory, config.clap)
    for key in ("llm", "clap"):
        setattr(config, key, place_of(directory, key, getattr(config, key), key in needs))
    config.clap = clap or config.clap
    known, llm = made["llm_hash"], config.llm
    if "llm" in needs and known and os.path.isdir(llm) and fingerprint(llm) != known:
        raise DataError(
            f"{llm} is not the language model that {directory} was trained with: it has changed "
            "since; put that back, or train again"
        )
    return config, made


def require_files(directory: Path) -> None:
    """Raises DataError where one of a saved model's files is missing."""
    if not directory.exists():
        raise DataError(
            f"{directory} holds no trained model: there is no such folder (train one: torchrun "
            "train.py)"
        )
    for name in REQUIRED:
        file, inside = directory / name, directory / "model"
        if file.exists():
            continue
        hint = f"did you mean {inside}?" if inside.is_dir() else "train one: torchrun train.py"
        if file.with_suffix(".bin").exists():
            hint = f"{file.with_suffix('.bin').name} is a pickle, which may hold code: never read"
        raise DataError(f"{directory} holds no trained model: {name} is missing ({hint})")


def refuse_code(directory: Path, clap: str) -> None:
    """Raises DataError where load_clap would import code for the CLAP that a config names."""
    if is_code(clap) or is_code(os.path.normpath(directory / clap)):
        raise DataError(
            f"{directory / 'config.json'}: the field clap names {clap}, which is code, and a model "
            f"does not say which code runs here: if you have it and trust it, --clap {clap}"
        )


def place_of(directory: Path, key: str, name: str, needed: bool) -> str:
    """What the field names: a folder as it is seen from here, or a name on the hub.

    Raises DataError where it is needed and is a folder that is not there, or one within the
    model's that has other weights than safetensors.
    """
    local = os.path.normpath(directory / name)
    inside = Path(local).is_relative_to(os.path.normpath(directory))
    if needed and not inside and is_cached(directory) and (os.path.exists(local) or is_path(name)):
        raise DataError(
            f"{directory / 'config.json'}: the field {key} names {name}, a folder outside of the "
            "model, which one from the hub must not"
        )
    if os.path.exists(local):
        bundled = os.path.isdir(local) and inside
        kinds = ("model.safetensors", "model.safetensors.index.json")
        if needed and bundled and not any(os.path.exists(f"{local}/{kind}") for kind in kinds):
            raise DataError(f"{local} lacks {kinds[0]}: of a model only safetensors are read")
        return local
    if needed and is_path(name):
        raise DataError(
            f"{directory / 'config.json'}: the field {key} names {name}, seen from its folder, and "
            f"{os.path.abspath(local)} is not there: copy it there, or change the field to its "
            "place or to a name on the hub (python -m hub FOLDER --to COPY copies all of a model)"
        )
    return name


def our_name(released: str) -> str:
    """transformer.layers.0.attn.to_queries.weight -> blocks.0.q.weight, and so on."""
    names = {
        "transformer.layers": "blocks",
        "prefix_const": "queries",
        "attn.to_queries": "q",
        "attn.to_keys_values": "kv",
        "attn.project": "out",
        "mlp.": "",
    }
    for theirs, ours in names.items():
        released = released.replace(theirs, ours)
    return released
