import copy
import json

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import gpt2, llama, make_samples
from peft import PeftModel
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2LMHeadModel

from data import collate
from disk import DataError
from experiments.bench.clock import Machine
from experiments.bench.samples import fake, sized
from mats import MATS, Mapper, MATSConfig
from santa import Santa, add_noise

SMALL = dict(dim=16, width=32, prefix=6, tokens=4, layers=2, heads=4, max_answer=12)
TEMPLATES = {gpt2: "{audio}{instruction}", llama: "USER: {audio} {tag} {instruction}\nASSISTANT:"}


def build(tokenizer, make=gpt2, **kwargs):
    llm = make(len(tokenizer))
    torch.manual_seed(1)
    model = MATS(MATSConfig(**SMALL | {"template": TEMPLATES[make]} | kwargs), llm, tokenizer)
    for name, p in model.trainable().items():  # LoRA's B starts at zero: give it something to say
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    return model


def batch_of(model, n=6):
    samples = [{**s, "tag": "[farm]" if i % 2 else ""} for i, s in enumerate(make_samples(n))]
    samples[0]["answer"] = "A dog"
    batch = collate(samples, model.template.encode(samples), model.tokenizer.eos_token_id)
    return (
        F.normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(0)), dim=-1),
        batch["ids"],
        batch["answer"],
    )


# --- the mapper ---


def test_mapper_is_the_released_architecture():
    """Against torch's own layers: pre-norm attention over [tokens, queries], ReLU, ratio 2."""
    torch.manual_seed(0)
    mapper, z = Mapper(16, 32, 24, prefix=6, tokens=4, layers=3, heads=4), torch.randn(5, 16)
    x = F.linear(F.normalize(z, dim=-1), mapper.linear.weight, mapper.linear.bias).view(5, 4, 32)
    x = torch.cat([x, mapper.queries.expand(5, 6, 32)], 1)
    for block in mapper.blocks:
        attention = torch.nn.MultiheadAttention(32, 4, bias=True, batch_first=True)
        attention.in_proj_weight.data = torch.cat([block.q.weight, block.kv.weight])
        attention.in_proj_bias.data.zero_()
        attention.out_proj = block.out
        h = F.layer_norm(x, (32,), block.norm1.weight, block.norm1.bias)
        x = x + attention(h, h, h, need_weights=False)[0]
        h = F.layer_norm(x, (32,), block.norm2.weight, block.norm2.bias)
        x = x + block.fc2(block.fc1(h).relu())
    torch.testing.assert_close(mapper(z), mapper.proj(x[:, 4:]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mapper(z), mapper(7 * z))  # the vector's length says nothing
    with pytest.raises(ValueError, match="multiple of heads"):
        Mapper(16, 30, 24, heads=4)


@pytest.mark.slow
def test_paper_sizes():
    mapper = Mapper(1024, 1024, 768)
    assert mapper(torch.randn(2, 1024)).shape == (2, 40, 768)
    assert round(sum(p.numel() for p in mapper.parameters()) / 1e6) == 110


# --- the loss ---


def gradients(model, net, batch):
    """The loss of a batch through `net`, with the marks that train.py sets, and all gradients."""
    model.zero_grad()
    z, ids, answer = (t.clone() for t in batch)
    torch._dynamo.mark_dynamic(ids, 1)
    torch._dynamo.mark_dynamic(answer, 0)
    loss = net(z, ids, answer)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.trainable().items()}


def same(got, want):
    torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=0)
    for name, g in got[1].items():
        torch.testing.assert_close(g, want[1][name], rtol=1e-4, atol=1e-7, msg=name)


def lengths(model):
    """Three batches of other numbers of positions and of answer tokens."""
    z, ids, answer = batch_of(model)
    T = ids.shape[1]
    return [
        (z, F.pad(ids, (0, more)), answer[:n] // T * (T + more) + answer[:n] % T)
        for more, n in ((0, 30), (8, 17), (24, 41))
    ]


@pytest.mark.parametrize("make", [gpt2, llama])
def test_loss_is_that_of_full_logits_on_answers_alone(tokenizer, make):
    """Against transformers' own loss over labels, -100 off the answers; and the same gradients."""
    model = build(tokenizer, make, lora_dropout=0.0).eval()
    z, ids, answer = batch_of(model)
    x = model.inputs(z, ids)
    words = torch.full_like(ids, -100)
    words.view(-1)[answer] = ids.view(-1)[answer]
    labels = torch.cat([torch.full((len(ids), SMALL["prefix"]), -100), words], 1)
    plain = model.llm(inputs_embeds=x, labels=labels).loss
    plain.backward()
    gradients = {n: p.grad.clone() for n, p in model.trainable().items()}
    model.zero_grad()
    loss = model.train()(z, ids, answer)  # with training's own attention
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    for name, p in model.trainable().items():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-7, msg=name)


def test_only_mapper_and_lora_learn_and_the_frozen_model_has_no_dropout(tokenizer):
    model = build(tokenizer).train()
    assert all("lora_" in n or n.startswith("mapper.") for n in model.trainable())
    assert {n.split(".")[0] for n in model.trainable()} == {"mapper", "llm"}
    batch = batch_of(model)
    assert float(model(*batch)) != float(model(*batch))  # LoRA's dropout
    quiet = build(tokenizer, lora_dropout=0.0).train()
    assert float(quiet(*batch)) == float(quiet(*batch))
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
    first = float(model.eval()(*batch))
    for _ in range(20):
        optimizer.zero_grad()
        model(*batch).backward()
        optimizer.step()
    assert float(model(*batch)) < first - 0.2
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in model.trainable()), name


def test_padding_changes_nothing(tokenizer):
    model = build(tokenizer).eval()
    z, ids, answer = batch_of(model, 1)
    n = int(answer.max()) + 1  # the one row's length
    wide = F.pad(ids, (0, 24), value=model.tokenizer.eos_token_id)
    torch.testing.assert_close(
        model(z, wide, answer), model(z, ids[:, :n], answer), rtol=1e-6, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_training_step_never_waits_and_builds_no_mask(tokenizer, make):
    """On fake tensors, which have no values: whatever asks for a number, and so waits, raises."""
    model, seen = build(tokenizer, make, llm_dtype="bfloat16").train(), []
    batch = batch_of(model)

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            if "attention" in str(f) and "backward" not in str(f):
                seen.append(
                    (args[4:5] == (True,), (kwargs or {}).get("attn_mask"))
                )  # is it causal, and its mask
            return f(*args, **kwargs or {})

    with FakeTensorMode() as mode, Ops():
        z, ids, answer = map(mode.from_tensor, batch)
        model = fake(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(add_noise(z, 0.015), ids, answer)
        loss.backward()
        with pytest.raises(DataDependentOutputException):
            bool(loss > 0)  # what waiting looks like
    assert all(p.grad.shape == p.shape for p in model.trainable().values())
    assert (
        seen == [(False, None)] * SMALL["layers"] + [(True, None)] * 2
    )  # the mapper's layers and the LLM's two


@pytest.mark.slow
@pytest.mark.parametrize("make", [gpt2, llama])
def test_compiled_it_is_one_graph_for_all_lengths_and_the_same_numbers(tokenizer, make):
    """Dynamo and autograd's tracing as in train.py --compile, without inductor (minutes)."""
    model = build(tokenizer, make, lora_dropout=0.0).train()
    batches = lengths(model)
    plain = [gradients(model, model, b) for b in batches]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile(backend="aot_eager", fullgraph=True)
    for batch, want in zip(batches, plain):
        same(gradients(model, model, batch), want)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_compiled_in_many_parts_by_ddp_it_is_the_same(tokenizer, tmp_path, monkeypatch):
    """DistributedDataParallel cuts the graph at its gradient buckets; here there are many."""
    model = build(tokenizer, lora_dropout=0.0).train()
    batches = lengths(model)
    plain, parts = [gradients(model, model, b) for b in batches], []

    def backend(graph, inputs):
        parts.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 20_000)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model.compile(backend=backend)
        ddp = DistributedDataParallel(
            model, bucket_cap_mb=0.02, gradient_as_bucket_view=True, broadcast_buffers=False
        )
        for batch, want in zip(batches, plain):
            same(gradients(model, ddp, batch), want)
        assert len(parts) >= 3
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["gpt2", "llama"])
def test_flops_are_those_that_torch_counts(size):
    """At the true sizes, on fake tensors, less attention's, which the formula leaves out."""
    model = sized(size, Machine("cpu", "bfloat16"), meta=True)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = fake(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(
                torch.empty(4, 1024),
                torch.empty(4, 64, dtype=torch.long),
                torch.empty(80, dtype=torch.long),
            )
        loss.backward()
    flop = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in flop.items() if "attention" in str(op))
    assert model.flops(64, 20) * 4 == pytest.approx(sum(flop.values()) - attention, rel=0.01)
    assert attention < 0.04 * sum(flop.values())


# --- generation ---


@pytest.mark.slow
@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize(
    "decoding", [{}, {"num_beams": 3}, {"repetition_penalty": 2.0, "no_repeat_ngram_size": 2}]
)
def test_an_answer_alone_is_the_answer_in_a_batch(tokenizer, make, decoding):
    model = build(tokenizer, make)
    z = torch.randn(9, 16, generator=torch.Generator().manual_seed(2))
    asks = [
        "Hi",
        "Generate audio caption.",
        "Is there a dog in the distance, or is it a cat that calls behind a door?",
    ] * 3
    tags = ["", "[farm]", ""] * 3
    together = model.generate(z, asks, tags, batch_size=9, **decoding)
    alone = [model.generate(z[i : i + 1], [asks[i]], [tags[i]], **decoding)[0] for i in range(9)]
    assert together == alone == model.generate(z, asks, tags, batch_size=2, **decoding)
    assert len(set(together)) >= 3


def test_while_it_trains_it_answers_as_it_will_later(tokenizer):
    model = build(tokenizer, lora_dropout=0.9)
    z, asks = torch.randn(3, 16), ["Hi", "What is heard at night?", "A dog?"]
    said = model.eval().generate(z, asks)
    assert model.train().generate(z, asks) == said and model.training


def test_generation_continues_the_training_sequence(tokenizer):
    """Greedy decoding must be the argmax of the logits that the loss sees."""
    model = build(tokenizer, llama).eval()
    z, ask = torch.randn(1, 16), "Generate audio caption."
    said = model.generate(z, [ask], max_new_tokens=4)[0]
    ids = model.template.head + model.template.prompts([ask])[0]
    new = []
    for _ in range(4):
        logits = model.llm(inputs_embeds=model.inputs(z, torch.tensor([ids + new]))).logits
        new.append(int(logits[0, -1].argmax()))
        if new[-1] == tokenizer.eos_token_id:
            break
    assert said == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_a_prompt_that_does_not_fit_is_refused(tokenizer):
    model = build(tokenizer)
    with pytest.raises(DataError, match="a prompt of .* tokens, and 109 is the limit: shorten"):
        model.generate(torch.randn(1, 16), ["dog " * 200])


def test_prefix_prompt_and_answer_may_fill_all_positions(tokenizer):
    model, ask = build(tokenizer).eval(), "Is there a dog?"
    prompt = len(model.template.head) + len(model.template.prompts([ask])[0])
    left = 128 - SMALL["prefix"] - prompt
    model.generate(torch.randn(1, 16), [ask], max_new_tokens=left)
    with pytest.raises(DataError, match=f"{prompt} tokens and {left + 1} new ones do not fit"):
        model.generate(torch.randn(1, 16), [ask], max_new_tokens=left + 1)


# --- files ---


def test_save_and_load(tokenizer, tmp_path):
    base = tmp_path / "llm"
    gpt2(len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = build(tokenizer, llm=str(base)).eval()
    model.santa = Santa.build(
        torch.randn(60, 16), m=50, k=5, generator=torch.Generator().manual_seed(0)
    )
    model.save_pretrained(tmp_path / "run" / "model")
    files = sorted(p.name for p in (tmp_path / "run" / "model").rglob("*") if p.is_file())
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pkl", ".pth"))]  # nothing pickled
    assert str(tmp_path) not in (tmp_path / "run/model/config.json").read_text()
    assert str(tmp_path) not in (tmp_path / "run/model/lora/adapter_config.json").read_text()

    (tmp_path / "run").rename(tmp_path / "moved")
    # one level up, where ../llm is no language model
    (tmp_path / "moved" / "model").rename(tmp_path / "model")
    with pytest.raises(DataError, match="the field llm names ../../llm, .* is not there"):
        MATS.from_pretrained(tmp_path / "model")
    (tmp_path / "run").mkdir()
    (tmp_path / "model").rename(tmp_path / "run" / "model")
    again = MATS.from_pretrained(tmp_path / "run" / "model")
    batch = batch_of(model)
    assert float(again(*batch)) == float(model(*batch))
    torch.testing.assert_close(again.santa(batch[0]), model.santa(batch[0]))
    assert again.generate(batch[0], ["Hi"] * 6) == model.generate(batch[0], ["Hi"] * 6)

    theirs = PeftModel.from_pretrained(
        GPT2LMHeadModel.from_pretrained(base), tmp_path / "run/model/lora"
    ).eval()
    x = model.inputs(*batch[:2])
    torch.testing.assert_close(theirs(inputs_embeds=x).logits, model.llm(inputs_embeds=x).logits)
    with pytest.raises(DataError, match="config.json"):
        MATS.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="did you mean .*run/model"):
        MATS.from_pretrained(tmp_path / "run")


def test_a_language_model_that_is_given_gets_the_configs_dtype(tokenizer):
    model = build(tokenizer, llm_dtype="bfloat16")
    assert {p.dtype for p in model.llm.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in model.trainable().values()} == {torch.float32}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    "name, damage, said",
    [
        ("mapper.safetensors", lambda b: b[:5000], "damaged or cut off"),
        ("mapper.safetensors", lambda b: b.replace(b"proj.bias", b"prxj.bias"), "does not fit"),
        ("lora/adapter_model.safetensors", lambda b: b[:100], "damaged or cut off"),
        ("lora/adapter_config.json", lambda b: b"{", "damaged or cut off"),
        ("lora/adapter_config.json", lambda b: b'{"peft_type": "DANCE"}', "lora"),
        ("santa.safetensors", lambda b: LFS, "LFS pointer"),
        ("santa.safetensors", lambda b: b.replace(b'"labels"', b'"labelz"'), "damaged, or of"),
        ("santa.safetensors", lambda b: b.replace(b"santa", b"satan"), "not a Santa memory"),
        ("config.json", lambda b: b"", "is empty"),
        ("config.json", lambda b: b.replace(b'"dim"', b'"dimension"'), "newer version"),
        ("config.json", lambda b: b.replace(b'"width": 32', b'"width": "32"'), "width is '32'"),
        ("config.json", lambda b: b.replace(b'"width": 32', b'"width": 16'), "does not fit"),
    ],
)
def test_a_damaged_checkpoint_is_named(tokenizer, tmp_path, name, damage, said):
    llm = gpt2(len(tokenizer))
    model = build(tokenizer, llm=str(tmp_path))
    model.santa = Santa.build(torch.randn(60, 16), m=50, k=5)
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / name
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    folder = tmp_path / "model"
    with pytest.raises(DataError, match=said) as error:
        MATS.from_pretrained(folder, copy.deepcopy(llm), tokenizer)
    assert file.name in str(error.value) or file.parent.name in str(error.value)
    assert "\n" not in str(error.value)
    file.write_bytes(whole)
    MATS.from_pretrained(folder, llm, tokenizer)


def test_a_mapper_of_nan_is_refused(tokenizer, tmp_path):
    model = build(tokenizer, llm=str(tmp_path))
    with torch.no_grad():
        model.mapper.queries[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="mapper.safetensors: queries holds NaN"):
        MATS.from_pretrained(tmp_path / "model", gpt2(len(tokenizer)), tokenizer)


def test_another_language_model_in_its_place_is_refused(tokenizer, tmp_path):
    llm = gpt2(len(tokenizer))
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    build(tokenizer, llm=str(tmp_path / "llm")).save_pretrained(tmp_path / "model")
    MATS.from_pretrained(tmp_path / "model")
    (tmp_path / "llm" / "README.md").write_text("notes")  # makes no other model
    MATS.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        llm.transformer.h[0].attn.c_attn.bias += 1
    llm.save_pretrained(tmp_path / "llm")
    with pytest.raises(DataError, match="llm is not the language model .* trained with"):
        MATS.from_pretrained(tmp_path / "model")


def test_the_probe_goes_with_the_model(tokenizer, tmp_path):
    model = build(tokenizer, llm=str(tmp_path))
    model.probe = [0.25, -0.5]
    model.save_pretrained(tmp_path / "model")
    folder = tmp_path / "model"
    again = MATS.from_pretrained(folder, gpt2(len(tokenizer)), tokenizer)
    assert again.probe == [0.25, -0.5]
    config = json.loads((folder / "config.json").read_text())
    del config["probe"]  # as older models
    (folder / "config.json").write_text(json.dumps(config))
    assert MATS.from_pretrained(folder, gpt2(len(tokenizer)), tokenizer).probe is None


def test_import_of_the_released_layout(tokenizer, tmp_path):
    """A synthetic checkpoint under the released key names."""
    model = build(tokenizer, llama)
    g = torch.Generator().manual_seed(3)

    def rand(*shape):
        return torch.randn(*shape, generator=g) * 0.1

    state = {
        "ln_audio.weight": rand(8),
        "ln_audio.bias": rand(8),
        "audio_mapper.linear.weight": rand(4 * 32, 16),
        "audio_mapper.linear.bias": rand(4 * 32),
        "audio_mapper.prefix_const": rand(6, 32),
        "audio_llama_proj.weight": rand(32, 32),
        "audio_llama_proj.bias": rand(32),
    }
    for i in range(2):
        at = f"audio_mapper.transformer.layers.{i}."
        state |= {
            at + "norm1.weight": rand(32),
            at + "norm1.bias": rand(32),
            at + "norm2.weight": rand(32),
            at + "norm2.bias": rand(32),
            at + "attn.to_queries.weight": rand(32, 32),
            at + "attn.to_keys_values.weight": rand(64, 32),
            at + "attn.project.weight": rand(32, 32),
            at + "attn.project.bias": rand(32),
            at + "mlp.fc1.weight": rand(64, 32),
            at + "mlp.fc1.bias": rand(64),
            at + "mlp.fc2.weight": rand(32, 64),
            at + "mlp.fc2.bias": rand(32),
        }
        for part, width in (("q_proj", 32), ("v_proj", 16)):
            at = f"llama_model.base_model.model.model.layers.{i}.self_attn.{part}."
            state |= {
                at + "lora_A.default.weight": rand(8, 32),
                at + "lora_B.default.weight": rand(width, 8),
            }
    path = tmp_path / "released.pth"
    torch.save({"model": state, "optimizer": {}, "config": {}, "scaler": None, "epoch": 3}, path)
    model.import_official(path)
    torch.testing.assert_close(
        model.mapper.blocks[1].kv.weight,
        state["audio_mapper.transformer.layers.1.attn.to_keys_values.weight"],
    )
    torch.testing.assert_close(model.mapper.queries, state["audio_mapper.prefix_const"])
    loaded = dict(model.llm.named_parameters())
    torch.testing.assert_close(
        loaded["base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight"],
        state[at + "lora_B.default.weight"],
    )

    torch.save({"model": {k: v for k, v in state.items() if "fc2" not in k}}, path)
    with pytest.raises(ValueError, match="fc2"):
        model.import_official(path)
    torch.save({"model": state | {"speech_encoder.weight": rand(3)}}, path)
    with pytest.raises(ValueError, match="speech_encoder"):
        model.import_official(path)
    torch.save({"model": {k: v for k, v in state.items() if "v_proj" not in k}}, path)
    with pytest.raises(ValueError, match="v_proj"):
        model.import_official(path)
