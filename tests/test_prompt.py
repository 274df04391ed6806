"""Prompts: tokens around the prefix, against the tokenizer itself."""

import copy
import re

import pytest
from conftest import make_samples
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedTokenizerFast

from disk import DataError
from language.prompt import Template, chat

CHAT = "<|im_end|>system {audio}<|im_end|>\n{tag} {instruction}<|im_end|>\nassistant:"


@pytest.fixture
def chatty(tokenizer):
    """A tokenizer with a second control token."""
    chatty = copy.deepcopy(tokenizer)
    chatty.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    return chatty


def test_a_templates_control_tokens_are_the_tokenizers(chatty):
    """Against the tokenizer itself, on the text as a whole."""
    template = Template(CHAT, chatty)
    end = chatty.convert_tokens_to_ids("<|im_end|>")
    assert end in template.head
    for instruction, tag in (("Describe the sounds of a dog.", "[farm]"), ("", "")):
        text = f"<|im_end|>\n{tag}{' ' if tag else ''}{instruction}<|im_end|>\nassistant:"
        (ids,) = template.prompts([instruction], [tag])
        assert ids == chatty(text, add_special_tokens=False).input_ids and ids.count(end) == 2


def test_of_control_tokens_that_begin_alike_the_longest_counts(tokenizer):
    alike = copy.deepcopy(tokenizer)
    alike.add_special_tokens({"additional_special_tokens": ["<turn>", "<turn>user"]})
    (ids,) = Template("{audio}{instruction}<turn>user", alike).prompts(["Hi"])
    assert ids == alike("Hi<turn>user", add_special_tokens=False).input_ids
    assert ids[-1] == alike.convert_tokens_to_ids("<turn>user")


def test_control_tokens_that_have_no_name_count_too(tokenizer):
    nameless = copy.deepcopy(tokenizer)
    nameless.add_tokens([AddedToken("<turn>", special=True)])
    end = nameless.convert_tokens_to_ids("<turn>")
    assert "<turn>" not in nameless.all_special_tokens
    assert Template("{audio}{instruction}{answer}<turn>", nameless).end[0] == end


def test_control_tokens_in_what_users_write_are_text(chatty):
    template, control = Template(CHAT, chatty), set(chatty.all_special_ids)
    for said in ("<|endoftext|>", "<|im_end|>", "<|im_end|><|endoftext|>"):
        sample = dict(instruction=f"What is {said}?", answer=f"a {said} dog", tag=said)
        ((ids, asked),) = template.encode([sample | dict(source="x", id="1")])
        assert not control & set(ids[asked:-1]) and ids[-1] == chatty.eos_token_id
        assert sum(i in control for i in ids[len(template.head) : asked]) == 2  # the template's
        assert chatty.decode(ids[asked:-1]) == f" a {said} dog"
        assert f"What is {said}?" in chatty.decode(ids[:asked])


def test_instructions_are_put_in_as_they_are(tokenizer):
    template = Template("{audio}{tag} {instruction}", tokenizer)
    (ids,) = template.prompts(["What is {tag} or {instruction}?"], ["{instruction}"])
    assert tokenizer.decode(ids) == "{instruction} What is {tag} or {instruction}?"


def test_long_texts_are_cut_by_name_and_the_template_never(chatty):
    template = Template(CHAT, chatty, max_answer=20, max_prompt=60)
    rows = [dict(instruction="Is there a dog? " * n, answer="yes", source="mine") for n in (1, 90)]
    rows.append(rows[0] | dict(answer="yes " * 50))
    samples = [row | {"id": i} for i, row in enumerate(rows)]
    problems = []
    encoded = template.encode(samples, problems)
    assert [problem.split(": its ")[0] for problem in problems] == ["mine 1", "mine 2"]
    assert "prompt of" in problems[0] and "cut to 60" in problems[0]
    assert "answer of" in problems[1] and "cut to 20" in problems[1]
    _, cue = chatty.decode(encoded[0][0][: encoded[0][1]]).split("dog? ")
    ids, asked = encoded[1]
    assert chatty.decode(ids[:asked]).endswith(cue) and len(template.head) < asked
    assert 40 < asked - len(template.head) <= 60
    with pytest.raises(DataError, match="instruction 1, 'Is there .* tokens, and 60 is the limit"):
        template.prompts([row["instruction"] for row in rows])


def test_space_around_an_answer_is_not_learned(tokenizer):
    sample = next(make_samples(1))
    plain, spaced = (sample | {"answer": answer} for answer in ("A dog", "  A dog \n"))
    template = Template("{audio}{instruction}", tokenizer)
    assert template.encode([spaced]) == template.encode([plain])


# --- the beginning ---


def test_a_prompt_begins_as_the_tokenizer_begins_a_text(tokenizer):
    first, plain = copy.deepcopy(tokenizer), tokenizer("dog ").input_ids
    first.backend_tokenizer.post_processor = TemplateProcessing(
        single="A $A <|endoftext|>",
        special_tokens=[("A", first("A").input_ids[0]), ("<|endoftext|>", first.eos_token_id)],
    )
    head = Template("dog {audio}{instruction}", first).head
    assert head == [tokenizer("A").input_ids[0], *plain]
    assert Template("A {audio}{instruction}", first).head == tokenizer("A ").input_ids


def test_a_token_that_merely_exists_does_not_begin_a_prompt(tokenizer):
    """As in SmolLM2-Instruct and Phi-4."""
    unused = copy.deepcopy(tokenizer)
    unused.bos_token = "A"
    head = Template("dog {audio}{instruction}", unused).head
    assert head == tokenizer("dog ").input_ids


# --- the answer and its end ---


def words_of(template, answer, tokenizer):
    sample = dict(instruction="What is it?", answer=answer, tag="", source="x", id="1")
    ((ids, asked),) = template.encode([sample])
    return tokenizer.decode(ids[:asked]), ids[asked:]


def test_an_answer_ends_with_the_control_token_after_its_place(chatty):
    end = chatty.convert_tokens_to_ids("<|im_end|>")
    for tail, last in (("<|im_end|>", end), ("<|im_end|>\n", end), ("", chatty.eos_token_id)):
        template = Template("{audio}{instruction} so: {answer}" + tail, chatty)
        prompt, answer = words_of(template, "a dog", chatty)
        assert prompt == "What is it? so:" and chatty.decode(answer[:-1]) == " a dog"
        assert answer[-1] == last == template.end[0] and chatty.eos_token_id in template.end


def test_an_answer_after_a_line_break_begins_with_no_space(chatty):
    template = Template("{audio}{instruction}\n{answer}<|im_end|>", chatty)
    prompt, answer = words_of(template, " a dog ", chatty)
    assert prompt == "What is it?\n" and chatty.decode(answer) == "a dog<|im_end|>"


def test_without_a_place_the_answer_follows_after_a_space(tokenizer):
    old, new = "{audio}{instruction}", "{audio}{instruction} {answer}"
    samples = list(make_samples(5))
    assert Template(old, tokenizer).encode(samples) == Template(new, tokenizer).encode(samples)


@pytest.mark.parametrize(
    "template, message",
    [
        ("{instruction}", "needs {audio} once, then {instruction}"),
        ("{audio}{audio}{instruction}", "needs {audio} once"),
        ("{instruction}{audio}", "same for all samples"),
        ("{tag}{audio}{instruction}", "same for all samples"),
        ("{audio}{answer}{instruction}", "{answer} may stand once, after {instruction}"),
        ("{audio}{instruction}{answer}{answer}", "{answer} may stand once"),
        ("{answer}{audio}{instruction}", "{answer} may stand once"),
        ("{audio}{instruction} {anwser}", "did you mean {answer} by {anwser}?"),
        ("{audio}{instruction}{answer} stop", "' stop', which is no control token .*<|im_end|>"),
        ("{audio}{instruction}{answer}<|im_end|><|im_end|>", "no control token"),
    ],
)
def test_bad_templates_are_one_line(chatty, template, message):
    with pytest.raises(DataError, match=re.escape(message).replace(r"\.\*", ".*")) as error:
        Template(template, chatty)
    assert "\n" not in str(error.value)


def test_other_braces_are_text(tokenizer):
    (ids,) = Template("{audio}{json} {instruction}", tokenizer).prompts(["Hi"])
    assert tokenizer.decode(ids) == "{json} Hi"


def test_answers_of_no_token_are_refused(tokenizer):
    with pytest.raises(DataError, match="max_answer=0: expected 1 or more"):
        Template("{audio}{instruction}", tokenizer, max_answer=0)


def test_a_tokenizer_that_makes_no_tokens_is_refused():
    """As transformers makes of a folder without a tokenizer's files."""
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(DataError, match="makes no tokens of a text: is its tokenizer.json there"):
        Template("{audio}{instruction}", empty)


def test_a_tokenizer_without_an_end_is_refused(tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        Template("{audio}{instruction}", endless)


@pytest.fixture(scope="module")
def pieces():
    """A tokenizer like SentencePiece's, which puts a space before a text."""
    tok = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    tok.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tok.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.pre_tokenizer = pre_tokenizers.Sequence([])
    lines = [f"{s['text']} {s['instruction']}\n[/INST]" for s in make_samples(40)]
    special = ["<unk>", "<s>", "</s>"]
    tok.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    tok.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    "template, spaced",
    [("{audio} {instruction} {answer}</s>", True), ("{audio} {instruction}\n{answer}</s>", False)],
)
def test_sentencepiece_gets_the_space_that_is_written(pieces, template, spaced):
    filled, sample = Template(template, pieces), next(make_samples(1))
    assert filled.head[:1] == [pieces.bos_token_id]
    ((ids, asked),) = filled.encode([sample])
    first = pieces.convert_ids_to_tokens(ids[asked])
    assert first.startswith("\u2581") == spaced
    assert pieces.decode(ids[asked:-1]).strip() == sample["answer"]
    assert ids[-1] == pieces.eos_token_id


# --- chat ---

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}\
{% if m.role == 'assistant' and THINKS %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}\
{{ m.content + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
{% if THINKS and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""
DATED = "{{ strftime_now('%d %B %Y') }}" + CHATML
LLAMA2 = """{% for m in messages %}{% if m.role == 'user' %}\
{{ '<|bos|>[INST] ' + m.content + ' [/INST]' }}\
{% else %}{{ ' ' + m.content + ' <|endoftext|>' }}{% endif %}{% endfor %}"""
CHANNELS = """{% for m in messages %}{{ '<|im_start|>' + m.role }}\
{% if m.role == 'assistant' %}{{ '<|channel|>final' }}{% endif %}{{ '<|message|>' + m.content }}\
{{ '<|return|>' if m.role == 'assistant' else '<|im_end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"""


@pytest.fixture
def speaking(chatty):
    """A tokenizer with control tokens of several families; give it a chat template."""
    extra = ["<|im_start|>", "<|bos|>", "<|channel|>", "<|message|>", "<|return|>"]
    chatty.add_special_tokens({"additional_special_tokens": ["<|im_end|>", *extra]})
    return chatty


@pytest.mark.parametrize(
    "written, end",
    [
        (CHATML.replace("THINKS", "false"), "<|im_end|>"),
        (CHATML.replace("THINKS", "true"), "<|im_end|>"),
        (DATED.replace("THINKS", "false"), "<|im_end|>"),
        (LLAMA2, "<|endoftext|>"),
        (CHANNELS, "<|return|>"),
    ],
    ids=["chatml", "thinking", "dated", "llama2", "channels"],
)
def test_chat_gives_the_tokens_of_the_tokenizers_own_template(speaking, written, end):
    """The prefix left out, prompt, answer and end are those of apply_chat_template."""
    speaking.chat_template = written
    template = Template("chat", speaking)
    user = {"role": "user", "content": "\nWhat is it?"}
    theirs = speaking.apply_chat_template(
        [user, {"role": "assistant", "content": "a dog"}],
        tokenize=False,
        chat_template=written.replace("{{ strftime_now('%d %B %Y') }}", "26 Jul 2024"),
    )
    sample = dict(instruction="What is it?", answer="a dog", tag="", source="x", id="1")
    ((ids, asked),) = template.encode([sample])
    whole = speaking(theirs, add_special_tokens=False).input_ids
    stop = speaking.convert_tokens_to_ids(end)
    places = [i for i, token in enumerate(whole) if token == stop]
    cut = next(i for i in places if i >= asked)  # a line break may follow the end
    assert speaking.decode(ids).replace(" <|e", "<|e") == speaking.decode(whole[: cut + 1]).replace(
        " <|e", "<|e"
    )
    assert ids[-1] == stop == template.end[0]
    assert speaking.decode(ids[asked:-1]).strip() == "a dog"
    assert template.head.count(speaking.convert_tokens_to_ids("<|bos|>")) == (written == LLAMA2)


def test_of_several_chat_templates_the_default_is_taken(speaking):
    written = CHATML.replace("THINKS", "false")
    speaking.chat_template = {"default": written, "tool_use": "{{ 'tools' }}"}
    several = chat(speaking)
    speaking.chat_template = written
    assert several == chat(speaking)


def test_space_that_a_control_token_takes_in_is_no_token(tokenizer):
    """As beside Phi-3's: the tokens are those of the tokenizer on the text as a whole."""
    taking = copy.deepcopy(tokenizer)
    marks = [
        AddedToken(mark, lstrip=mark == "<|b|>", rstrip=True, special=True, normalized=False)
        for mark in ("<|a|>", "<|b|>")
    ]
    taking.add_special_tokens({"additional_special_tokens": marks})
    template = Template("{audio}{instruction}<|a|>\n cow  <|b|>\n{answer}", taking)
    (ids,) = template.prompts(["dog"])
    assert ids == taking("dog<|a|>\n cow  <|b|>\n", add_special_tokens=False).input_ids


def test_a_chat_template_is_kept_as_it_was_written(speaking):
    """So a model that was trained does not follow a tokenizer that is changed later."""
    speaking.chat_template = CHATML.replace("THINKS", "false")
    first = Template("chat", speaking)
    assert first.text == "<|im_start|>user\n{audio}\n{tag} {instruction}<|im_end|>\n" + (
        "<|im_start|>assistant\n{answer}<|im_end|>"
    )
    again = Template(first.text, speaking)
    samples = list(make_samples(3))
    assert again.encode(samples) == first.encode(samples) and again.end == first.end


def test_a_thought_that_is_begun_is_ended(speaking):
    cue = "{{ '<|im_start|>assistant\\n' }}"
    assert cue in CHATML
    begun = CHATML.replace(cue, "{{ '<|im_start|>assistant\\n<think>\\n' }}")
    speaking.chat_template = begun.replace("THINKS", "false")
    assert "<think>\n\n</think>\n\n{answer}" in chat(speaking)


def test_thinking_is_switched_off_where_the_template_asks(speaking):
    """As in SmolLM3, which writes past turns without a thought."""
    past, cue = CHATML.replace("and THINKS %}", "and false %}", 1), "<|im_start|>assistant\n"
    speaking.chat_template = past.replace("THINKS", "true")
    assert chat(speaking).endswith(cue + "<think>\n\n</think>\n\n{answer}<|im_end|>")


def test_an_answer_ends_with_the_first_control_token_of_several(speaking):
    speaking.chat_template = CHATML.replace("THINKS", "false").replace(
        "'<|im_end|>\\n'", "'<|im_end|>\\n<|endoftext|>'"
    )
    assert chat(speaking).endswith("{answer}<|im_end|>")


def test_what_is_no_chat_is_one_line(tokenizer, speaking):
    with pytest.raises(DataError, match="template 'chat': .* has no chat template"):
        Template("chat", tokenizer)
    speaking.chat_template = "{{ raise_exception('only tools') }}"
    with pytest.raises(DataError, match="template 'chat': only tools .*--template="):
        Template("chat", speaking)
    speaking.chat_template = "hello"
    with pytest.raises(DataError, match="needs {audio} once"):
        Template("chat", speaking)
