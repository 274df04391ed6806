"""4 bits. Oracle: QLoRA's definition of NF4, read from bitsandbytes' bytes with numpy."""

import json
import sys
from statistics import NormalDist
from types import SimpleNamespace

import conftest
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from disk import DataError
from language import nf4
from mats import MATS, MATSConfig

SMALL = dict(dim=16, width=32, prefix=4, tokens=4, layers=2, heads=2, lora_dropout=0.0)


@pytest.fixture
def bnb():
    return pytest.importorskip(
        "bitsandbytes", reason="4 bits: pip install -r requirements-4bit.txt"
    )


def gpt2(vocab):
    config = GPT2Config(vocab_size=vocab, n_embd=64, n_layer=2, n_head=2, n_positions=256)
    return GPT2LMHeadModel(config)


def llama(vocab):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 256}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, **heads, **sizes))


def write(folder, tokenizer, make):
    torch.manual_seed(0)
    make(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=[gpt2, llama])
def folder(request, tokenizer, tmp_path):
    return write(tmp_path / "llm", tokenizer, request.param)


def build(folder, llm=None, llm_dtype="nf4"):
    model = MATS(MATSConfig(**SMALL, llm=str(folder), llm_dtype=llm_dtype), llm).train()
    torch.manual_seed(0)
    for p in model.trainable().values():  # LoRA's B too, which starts at 0
        torch.nn.init.normal_(p, std=0.1)
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 300, (3, 12), generator=generator)
    return torch.randn(3, 16, generator=generator), ids, torch.tensor([8, 9, 10, 20, 21, 33])


def loss_and_gradients(model):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*batch())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.trainable().items()}


def same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-3, atol=0)
    for name, gradient in ours[1].items():
        assert (gradient - theirs[1][name]).norm() < 0.03 * theirs[1][name].norm(), name


# --- the oracle ---


def numbers():
    """NF4: equally likely parts of a normal distribution, 8 above 0, 7 below, the farthest at 1."""
    tail = 1 - (1 / 30 + 1 / 32) / 2
    above, below = (
        [NormalDist().inv_cdf(share) for share in np.linspace(0.5, tail, n + 1)[1:]] for n in (8, 7)
    )
    return np.sort([0.0, *above, *np.negative(below)]) / max(above)


def unpacked(weight):
    """(blocks, 64): each weight's place among the numbers; the first of two is the high half."""
    bytes_ = weight.data.numpy().ravel()
    return np.stack([bytes_ >> 4, bytes_ & 15], 1).reshape(-1, 64)


def scales(state):
    """(blocks,): 8 bits name one of 256 numbers, times a scale of 256 blocks, plus their mean."""
    outer = np.repeat(state.state2.absmax.numpy(), 256)[: len(state.absmax)]
    return state.state2.code.numpy()[state.absmax.numpy()] * outer + state.offset.numpy()


def restored(weight):
    values = numbers()[unpacked(weight)] * scales(weight.quant_state)[:, None]
    return torch.from_numpy(values.reshape(weight.quant_state.shape)).bfloat16()


def layers(llm, kind):
    return {name: module for name, module in llm.named_modules() if isinstance(module, kind)}


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def quantised(folder):
    return AutoModelForCausalLM.from_pretrained(folder, **nf4.loading("nf4"))


def oriented(module):
    """The layer's weight, (out, in)."""
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


def test_the_weights_are_the_nearest_of_16_numbers_times_their_blocks_largest(bnb, folder):
    originals = layers(plain(folder), torch.nn.Linear | Conv1D)
    for name, module in layers(quantised(folder), bnb.nn.Linear4bit).items():
        blocks = oriented(originals[name]).float().numpy().reshape(-1, 64)
        largest = np.abs(blocks).max(1)
        np.testing.assert_allclose(scales(module.weight.quant_state), largest, rtol=0.1)
        nearest = np.abs(blocks[..., None] / largest[:, None, None] - numbers()).argmin(-1)
        assert (nearest == unpacked(module.weight)).mean() > 0.995, name


def test_loss_and_gradients_are_those_of_the_restored_weights(bnb, folder):
    model, reference = build(folder), plain(folder)
    others = layers(reference, torch.nn.Linear | Conv1D)
    for name, module in layers(model.llm.get_base_model(), bnb.nn.Linear4bit).items():
        where = others[name.removesuffix(".base_layer")]
        where.weight.data = oriented_like(where, restored(module.weight))
    oracle = build(folder, reference, "bfloat16")
    same(loss_and_gradients(model), loss_and_gradients(oracle))
    assert model.flops(10, 4) == oracle.flops(10, 4)  # two weights share a byte
    rounded = loss_and_gradients(build(folder, llm_dtype="bfloat16"))
    with pytest.raises(AssertionError):  # 4 bits are felt: the comparison can fail
        same(rounded, loss_and_gradients(oracle))


def oriented_like(module, weight):
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def test_embeddings_norms_and_head_have_16_bits_and_what_is_trained_32(bnb, folder):
    model = build(folder)
    frozen = [p for p in model.llm.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16, torch.uint8}
    llm = model.llm.get_base_model()
    assert model.embed.weight.dtype == llm.get_output_embeddings().weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.trainable().values()} == {torch.float32}
    assert all("lora_" in name or name.startswith("mapper.") for name in model.trainable())


# --- training ---


def test_gradients_outlive_validation(bnb, folder):
    """Some CPUs' bitsandbytes packs the weights anew in evaluation, and then has no gradients."""
    model = build(folder)
    before = loss_and_gradients(model)
    model.generate(batch()[0], ["Generate audio caption."] * 3, max_new_tokens=2)
    with torch.no_grad():
        model.eval()(*batch())
    same(loss_and_gradients(model.train()), before)


def test_training_lowers_the_loss_and_leaves_the_frozen_bytes(bnb, folder):
    model = build(folder)
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=2e-2)
    losses = []
    for _ in range(12):
        losses.append(float(loss_and_gradients(model)[0]))
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


# --- files ---


def test_saved_and_loaded_it_is_the_same_and_nothing_of_4_bits_is_saved(bnb, folder, tmp_path):
    model = build(folder).eval()
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["llm_dtype"] == "nf4" and config["llm"] == "../llm"
    adapter = load_file(tmp_path / "saved" / "lora" / "adapter_model.safetensors")
    assert all("lora_" in name and t.dtype == torch.float32 for name, t in adapter.items())
    again = MATS.from_pretrained(tmp_path / "saved")
    same(loss_and_gradients(again), loss_and_gradients(model))
    questions = ["Generate audio caption."] * 3
    assert again.generate(batch()[0], questions, max_new_tokens=4) == model.generate(
        batch()[0], questions, max_new_tokens=4
    )
    PeftModel.from_pretrained(plain(folder), tmp_path / "saved" / "lora")  # as any adapter


# --- refusals ---


def test_without_bitsandbytes_a_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(DataError, match=r"llm_dtype=nf4.*pip install -r requirements-4bit.txt$"):
        build(folder)


def test_a_bitsandbytes_that_cannot_do_it_here_is_refused(folder, monkeypatch):
    def quantize_4bit(*args, **kwargs):
        raise NotImplementedError("no 4 bits\non this device")

    old = SimpleNamespace(quantize_4bit=quantize_4bit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(functional=old))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", old)
    with pytest.raises(DataError, match="no 4 bits on this device.*requirements-4bit.txt$"):
        build(folder)


def test_a_language_model_that_is_given_must_have_the_bits_that_are_named(bnb, folder):
    with pytest.raises(DataError, match="llm_dtype=nf4.*by name or folder"):
        build(folder, plain(folder))
    with pytest.raises(DataError, match="--llm_dtype=nf4, and not float32"):
        build(folder, quantised(folder), "float32")
    assert build(folder, quantised(folder))


def test_rows_that_blocks_do_not_fill_are_refused(bnb, tokenizer, tmp_path):
    """Across rows a CPU's bitsandbytes would restore other weights, and say nothing."""
    narrow = write(tmp_path / "llm", tokenizer, conftest.llama)
    with pytest.raises(DataError, match="multiple of 64.*q_proj has 32: --llm_dtype=bfloat16"):
        build(narrow)
