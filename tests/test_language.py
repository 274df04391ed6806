"""The frozen language model: what is asked of it, how it ends, which layers get LoRA."""

import copy
import json

import pytest
import torch
from conftest import gpt2, llama
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    T5Config,
)

from disk import DataError
from language.model import linear_layers, targets_of, window_of
from mats import MATS, MATSConfig

SMALL = dict(dim=16, width=32, prefix=6, tokens=4, layers=1, heads=4, max_answer=12)


def build(tokenizer, llm, **kwargs):
    torch.manual_seed(1)
    model = MATS(MATSConfig(**SMALL | kwargs), llm, tokenizer)
    for name, p in model.trainable().items():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    return model.eval()


# --- decoding and its end ---


@pytest.fixture
def stubborn(tokenizer):
    """A language model whose checkpoint asks for beams, sampling and a penalty."""
    llm = gpt2(len(tokenizer))
    llm.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=1.8, num_beams=3, max_length=9
    )
    return llm


def test_greedy_is_greedy_whatever_the_checkpoint_asks_for(tokenizer, stubborn):
    z, asks = torch.randn(4, 16, generator=torch.manual_seed(5)), ["Hi", "dog", "A cat", "frog?"]
    plain = build(tokenizer, gpt2(len(tokenizer)))
    assert build(tokenizer, stubborn).generate(z, asks) == plain.generate(z, asks)


def test_an_answer_ends_where_the_checkpoint_ends_its_turns(tokenizer):
    in_ids = copy.deepcopy(tokenizer)  # random answers are no text
    in_ids.batch_decode = lambda rows, **how: [" ".join(map(str, row)) for row in rows]
    z, ask = torch.randn(1, 16, generator=torch.manual_seed(5)), ["A dog?"]
    said = build(in_ids, gpt2(len(tokenizer))).generate(z, ask)[0].split()
    stop = next(token for token in said[2:] if token not in said[:2])
    for ends in (int(stop), [tokenizer.eos_token_id, int(stop)]):
        llm = gpt2(len(tokenizer))
        llm.generation_config.eos_token_id = ends
        model = build(in_ids, llm)
        assert set(model.ends) == {tokenizer.eos_token_id, int(stop)}
        assert model.generate(z, ask)[0].split() == said[: said.index(stop)]


def test_nothing_is_generated_beyond_any_of_its_ends(tokenizer, monkeypatch):
    llm, asked = gpt2(len(tokenizer)), []
    llm.generation_config.eos_token_id = [7, 9]
    model = build(tokenizer, llm)
    generate = model.llm.generate
    monkeypatch.setattr(model.llm, "generate", lambda **how: asked.append(how) or generate(**how))
    model.generate(torch.randn(1, 16), ["A dog?"])
    assert set(asked[0]["eos_token_id"]) == {tokenizer.eos_token_id, 7, 9}


def test_two_models_on_one_language_model_end_alike(tokenizer):
    llm = gpt2(len(tokenizer))
    llm.generation_config.eos_token_id = [7, 9]
    first, second = (MATS(MATSConfig(**SMALL), llm, tokenizer).ends for _ in range(2))
    assert first == second == [tokenizer.eos_token_id, 7, 9]


def test_a_prompt_begins_as_it_was_trained(tokenizer, tmp_path):
    """Also where the tokenizer begins another way later, and in models of before that was kept."""
    model = build(tokenizer, gpt2(len(tokenizer)), template="dog {audio}{instruction}")
    model.template.head = [5, *model.template.head]
    model.save_pretrained(tmp_path)
    llm = gpt2(len(tokenizer))
    assert MATS.from_pretrained(tmp_path, llm, tokenizer).template.head == model.template.head
    config = json.loads((tmp_path / "config.json").read_text())
    unused = copy.deepcopy(tokenizer)
    unused.bos_token = "A"
    (tmp_path / "config.json").write_text(json.dumps(config | {"head": []}))  # nothing before it
    assert MATS.from_pretrained(tmp_path, llm, unused).template.head == []
    (tmp_path / "config.json").write_text(json.dumps(config | {"head": ["a"]}))
    with pytest.raises(DataError, match="config.json: head is .*expected token ids"):
        MATS.from_pretrained(tmp_path, llm, tokenizer)
    del config["head"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    # it used to be put wherever there was one
    old = [unused.bos_token_id, *tokenizer("dog ").input_ids]
    assert MATS.from_pretrained(tmp_path, llm, unused).template.head == old


# --- what cannot be loaded ---


@pytest.mark.parametrize(
    "name, said",
    [
        ("./nowhere", "there is no such folder"),
        ("folder", "no config.json in it"),
        ("t5", "is of the type t5, of which transformers has no causal language model"),
        ("words", "makes no tokens of a text"),
    ],
)
def test_what_is_no_language_model_is_one_line(tokenizer, tmp_path, name, said):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    if name == "t5":
        T5Config(vocab_size=400).save_pretrained(path)
        tokenizer.save_pretrained(path)
    if name == "words":
        gpt2(len(tokenizer)).save_pretrained(path)
    with pytest.raises(DataError, match=said) as error:
        MATS(MATSConfig(llm=str(path), **SMALL))
    assert "\n" not in str(error.value) and name.strip("./") in str(error.value)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tokenizer):
    with pytest.raises(DataError, match="knows 345 tokens, and its tokenizer makes .* number 345"):
        MATS(MATSConfig(**SMALL), gpt2(len(tokenizer) - 1), tokenizer)
    more = copy.deepcopy(tokenizer)
    more.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    MATS(MATSConfig(**SMALL), gpt2(len(tokenizer)), more)  # in a text it is no token
    with pytest.raises(DataError, match="knows 346 tokens"):
        config = MATSConfig(template="{audio}{instruction}{answer}<|im_end|>", **SMALL)
        MATS(config, gpt2(len(tokenizer)), more)


def test_prompts_are_cut_to_what_the_model_has_positions_for(tokenizer):
    """40 positions, 6 of them the prefix; a longer sample would have ended the training."""
    llm = GPT2LMHeadModel(
        GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=40)
    )
    model = MATS(MATSConfig(**SMALL), llm, tokenizer)
    sample = dict(instruction="dog " * 90, answer="cat " * 90, tag="", source="x", id="1")
    problems = []
    ((ids, _),) = model.template.encode([sample], problems)
    assert 30 < len(ids) + 6 <= 40 and len(problems) == 2
    with pytest.raises(DataError, match="40 positions: prefix=6 and max_answer=30 leave no room"):
        MATS(MATSConfig(**SMALL | {"max_answer": 30}), llm, tokenizer)


@pytest.mark.parametrize("size", ["prefix", "tokens", "width", "layers", "heads", "dim"])
def test_a_mapper_of_nothing_is_refused(tokenizer, size):
    with pytest.raises(DataError, match=f"{size}=0: expected 1 or more"):
        MATS(MATSConfig(**SMALL | {size: 0}), gpt2(len(tokenizer)), tokenizer)


# --- the check ---


class Shifted(GPT2LMHeadModel):
    """Its logits have a term that the output embedding does not."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + torch.linspace(0, 1, out.logits.shape[-1])
        return out


class Blind(GPT2LMHeadModel):
    """It does not keep padding out."""

    def forward(self, *args, attention_mask=None, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class Worded(GPT2LMHeadModel):
    """It wants tokens."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None):
        return super().forward(input_ids, past_key_values=past_key_values)


class Leaky(GPT2LMHeadModel):
    """Every padded position makes its logits a hundredth larger."""

    def forward(self, *args, attention_mask=None, position_ids=None, **kwargs):
        told = {"attention_mask": attention_mask, "position_ids": position_ids}
        out = super().forward(*args, **told, **kwargs)
        if attention_mask is not None:
            out.logits = out.logits * (1 + 0.01 * (attention_mask == 0).sum(1))[:, None, None]
        return out


@pytest.mark.parametrize(
    "kind, message",
    [
        (Shifted, "its logits are not its output embedding of the last hidden state"),
        (Blind, "its answers depend on the padding in their batch"),
        (Leaky, "its answers depend on the padding in their batch"),
        (Worded, "inputs_embeds"),
    ],
)
def test_what_mats_cannot_use_is_refused_by_name(tokenizer, kind, message):
    llm = kind(gpt2(len(tokenizer)).config)
    with pytest.raises(DataError, match=f"'some/model' \\({kind.__name__}\\).*{message}") as error:
        MATS(MATSConfig(llm="some/model", **SMALL), llm, tokenizer)
    assert "\n" not in str(error.value)


def test_a_model_that_sees_later_tokens_is_refused(tokenizer):
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    bert = BertLMHeadModel(BertConfig(vocab_size=400, **sizes))
    with pytest.raises(DataError, match="it is not causal"):
        MATS(MATSConfig(**SMALL), bert, tokenizer)


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_scale_and_cap_are_those_that_the_model_applies(tokenizer, factor):
    """The same field divides in Granite and multiplies in HyperCLOVA X."""
    llm = gpt2(len(tokenizer))
    torch.nn.init.normal_(llm.lm_head.weight, std=2.0)

    def capped(module, args, out):
        out.logits = 2.0 * torch.tanh(out.logits / 4 / 2.0)

    llm.register_forward_hook(capped)
    llm.config.logits_scaling, llm.config.final_logit_softcapping = factor, 2.0
    rescale = MATS(MATSConfig(**SMALL), llm, tokenizer).rescale
    assert rescale == (0.25, 2.0)
    x = torch.linspace(-9, 9, 7)
    torch.testing.assert_close(rescale(x), 2 * torch.tanh(x / 8))


def test_of_rescalings_that_are_alike_the_closest_is_taken(tokenizer):
    """A cap that is far above small logits hardly changes them."""
    llm = gpt2(len(tokenizer))
    llm.config.final_logit_softcapping = 300.0
    assert MATS(MATSConfig(**SMALL), llm, tokenizer).rescale == (1.0, 0.0)


def test_a_config_that_names_a_kernel_is_refused(tokenizer, tmp_path):
    """An attention kernel of the hub is code."""
    llama(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["attn_implementation"] = "someone/kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="names the attention kernel someone/kernel"):
        MATS(MATSConfig(llm=str(tmp_path), **SMALL))


def test_a_field_that_the_model_does_not_apply_is_not_applied(tokenizer):
    """As Gemma 3's wrapper, whose text model has a cap."""
    llm = gpt2(len(tokenizer))
    llm.config.logit_scale, llm.config.final_logit_softcapping = 0.5, 0.1
    assert MATS(MATSConfig(**SMALL), llm, tokenizer).rescale == (1.0, 0.0)


def mistral(window):
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=400, num_key_value_heads=2, sliding_window=window, **sizes)
    return MistralForCausalLM(config)


def test_a_mask_is_left_out_only_where_every_layer_sees_all(tokenizer):
    """512 + 12 tokens of prompt and answer, 6 of prefix, 1 end."""
    assert window_of(gpt2()) == window_of(mistral(None)) == float("inf")
    for window, maskless in ((530, False), (531, True), (None, True)):
        assert MATS(MATSConfig(**SMALL), mistral(window), tokenizer).maskless == maskless


def test_a_mask_stays_where_a_window_goes_by_another_name(tokenizer, monkeypatch):
    monkeypatch.setattr("language.model.window_of", lambda llm: float("inf"))
    for window, maskless in ((3, False), (None, True)):
        assert MATS(MATSConfig(**SMALL), mistral(window), tokenizer).maskless == maskless


# --- LoRA's layers ---


def test_layers_by_name_pattern_or_all_of_them():
    llm = llama()
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert targets_of(llm, "") == ["q_proj", "v_proj"]  # PEFT's own default
    assert set(targets_of(llm, "all-linear")) == every
    assert targets_of(llm, "v_proj, self_attn.q_proj") == ["q_proj", "v_proj"]
    first = targets_of(llm, r".*layers\.0\.mlp\.(up|down)_proj")
    assert first == [f"model.layers.0.mlp.{name}_proj" for name in ("up", "down")]
    assert targets_of(llm, r".*mlp\..*") == ["down_proj", "gate_proj", "up_proj"]
    assert "lm_head" not in linear_layers(llm)


def test_a_family_that_peft_does_not_know_gets_its_attention():
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    olmo = Olmo2ForCausalLM(Olmo2Config(vocab_size=400, **sizes))
    assert targets_of(olmo, "") == ["k_proj", "o_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize(
    "targets",
    ["c_attn", "q_proj,w_proj", ".*nothing.*", "q_proj(", " , ", "q_proj,all-linear", "lm_head"]
    + [r"self_attn\.(q|v)_proj"],
)
def test_layers_that_are_not_there_are_named_with_those_that_are(tokenizer, targets):
    with pytest.raises(DataError, match="--lora_targets=") as error:
        MATS(MATSConfig(lora_targets=targets, **SMALL), llama(len(tokenizer)), tokenizer)
    said = str(error.value)
    assert "\n" not in said and ("regular expression" in said)
    if targets == "q_proj,w_proj":
        assert "no such layer for LoRA: w_proj; it has down_proj, gate_proj" in said


def test_trained_layers_are_those_that_were_asked_for(tokenizer, tmp_path):
    pattern = r".*layers\.1\.self_attn\.(q|v)_proj"
    model = build(tokenizer, llama(len(tokenizer)), lora_targets=pattern)
    layers = {name.split(".lora_")[0] for name in model.trainable() if "lora_" in name}
    assert {name.rpartition("layers.")[2] for name in layers} == {
        "1.self_attn.q_proj",
        "1.self_attn.v_proj",
    }
    model.save_pretrained(tmp_path)
    again = MATS.from_pretrained(tmp_path, llama(len(tokenizer)), tokenizer)
    z = torch.randn(2, 16)
    assert again.generate(z, ["Hi", "dog"]) == model.generate(z, ["Hi", "dog"])


# --- chat ---


def test_a_saved_model_brings_the_chat_template_along(tokenizer, tmp_path):
    speaking = copy.deepcopy(tokenizer)
    speaking.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    speaking.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    model = build(speaking, llama(len(speaking)), template="chat")
    assert model.ends[0] == speaking.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(tmp_path)
    changed = copy.deepcopy(speaking)
    changed.chat_template = "{{ 'something else' }}"
    again = MATS.from_pretrained(tmp_path, llama(len(speaking)), changed)
    z = torch.randn(2, 16)
    assert again.config.template.endswith("assistant\n{answer}<|im_end|>")
    assert again.generate(z, ["Hi", "dog"]) == model.generate(z, ["Hi", "dog"])
