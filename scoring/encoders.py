"""Text matching's encoders: the space in which a prediction is compared with the labels."""

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from scoring.llm import Endpoint


def text_encoder(name: str, clap: Callable, device: torch.device) -> Callable[[list], Tensor]:
    """list of str -> (n, D) unit rows.

    name: `clap`, for which `clap()` returns the model's own; https://ENDPOINT#MODEL, OpenAI-
    compatible; or a text tower of CLIP or a sentence encoder of transformers, by name or folder.
    """
    if name == "clap":
        return lambda texts: clap().encode_text(texts).cpu()
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        key = os.environ.get("OPENAI_API_KEY")
        endpoint = Endpoint(url, model or "text-embedding-ada-002", key)
        return lambda texts: F.normalize(torch.tensor(endpoint.embed(texts)), dim=-1)
    return of_transformers(name, device)


def of_transformers(name: str, device: torch.device) -> Callable[[list], Tensor]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

    is_clip = AutoConfig.from_pretrained(name).model_type.startswith("clip")
    kind = CLIPTextModelWithProjection if is_clip else AutoModel
    model = kind.from_pretrained(name).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(name)

    @torch.inference_mode()
    def encode(texts: list[str], batch: int = 256) -> Tensor:
        rows = []
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            tokens = tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(device)
            out = model(**tokens)
            if is_clip:
                rows.append(out.text_embeds)
            else:  # the mean over the words, as sentence encoders are trained
                mask = tokens["attention_mask"][..., None]
                rows.append((out.last_hidden_state * mask).sum(1) / mask.sum(1))
        return F.normalize(torch.cat(rows).float().cpu(), dim=-1)

    return encode
