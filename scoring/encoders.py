"""Text encoders of text matching, by name.

They compute in float64: two CPUs then differ by 1e-15, in float32 by 1e-7, which moves scores.
"""

import copy
import os
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from disk import reading
from scoring.llm import GET_MODEL, Endpoint, clean


def text_encoder(name: str, clap: Callable, device: str = "cpu") -> Callable[[list[str]], Tensor]:
    """list of str -> (n, D) unit rows, float64 (of encoders that are not ours, as they come).

    name: `clap`, the model's own text tower; https://...#MODEL, an OpenAI-compatible endpoint; or a
    text tower of CLIP or a sentence encoder that transformers can load. clap: returns the CLAP, and
    is called when that is first needed. Raises DataError where a model cannot be loaded.
    """
    if name == "clap":
        tower = cache(lambda: precise(clap()))
        return lambda texts: tower().encode_text(list(map(clean, texts))).cpu()
    if not name.startswith(("http://", "https://")):
        return transformers_encoder(name, device)
    url, _, model = name.partition("#")
    endpoint = Endpoint(url, model or "text-embedding-ada-002", os.environ.get("OPENAI_API_KEY"))
    return lambda texts: F.normalize(torch.tensor(endpoint.embed(texts)).double(), dim=-1)


def precise(clap):
    """A float64 copy of a CLAP or PE-AV, on the CPU; a pair of one's own as it is."""
    ours = hasattr(clap, "fast_towers")
    return copy.deepcopy(clap).cpu().double() if ours else clap


def transformers_encoder(name: str, device: str) -> Callable[[list[str]], Tensor]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

    with reading(f"the text encoder {name}", GET_MODEL):
        safe = {"trust_remote_code": False}
        clip = AutoConfig.from_pretrained(name, **safe).model_type.startswith("clip")
        kind = CLIPTextModelWithProjection if clip else AutoModel
        model = kind.from_pretrained(name, dtype=torch.float64, **safe).to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(name, **safe)

    @torch.inference_mode()
    def encode(texts: list[str], batch: int = 256) -> Tensor:
        rows = []
        for start in range(0, len(texts), batch):
            part = [clean(text) for text in texts[start : start + batch]]
            how = dict(padding=True, truncation=True, return_tensors="pt")
            tokens = tokenizer(part, split_special_tokens=True, **how).to(device)
            out = model(**tokens)
            if clip:
                rows.append(out.text_embeds)
            else:  # the mean over the words, as sentence encoders are trained
                mask = tokens["attention_mask"][..., None]
                rows.append((out.last_hidden_state * mask).sum(1) / mask.sum(1))
        return F.normalize(torch.cat(rows).cpu(), dim=-1)

    return encode
