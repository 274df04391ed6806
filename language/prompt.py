"""An instruction -> tokens, with a place for the prefix; an answer -> tokens, with an end."""

import difflib
import re

from disk import DataError, reading


class Template:
    """Tokens around the prefix.

    `{audio}` is the place of the prefix, `{instruction}` of the instruction, `{answer}` of the
    answer; `{tag}` of the sample's tag (the released code has one for each data set), which
    vanishes where there is none.

        "{audio}{instruction}"                                                   GPT-2, as in Eq. 1
        "USER: <Speech>{audio}</Speech> {tag} {instruction}\\nASSISTANT:"        Vicuna, as released
        "[INST] {audio} {instruction} [/INST] {answer}</s>"             with the place of the answer
        "chat"                                                    the tokenizer's own chat template

    An answer is cut at `max_answer` tokens, and ends with the control token after `{answer}`, or
    with the end-of-text token. Without `{answer}` it follows after a space. `head` holds the tokens
    before the prefix: first those that the tokenizer itself puts before a text. Control tokens of
    the template count; those in an instruction, a tag or an answer are plain text.

    Attributes: text, the template as it is written, that of "chat" included; end, the ids at which
    an answer may end, its own first; longest, the most tokens of a sample.
    Raises DataError on a template without its places, and on a tokenizer without an end-of-text
    token.
    """

    def __init__(self, template: str, tokenizer, max_answer=150, max_prompt=512):
        self.text = template = chat(tokenizer) if template == "chat" else template
        self.tokenizer, self.max_answer, self.max_prompt = tokenizer, max_answer, max_prompt
        if max_answer < 1:
            raise DataError(f"max_answer={max_answer}: expected 1 or more")
        check_places(template)
        if not tokenizer.tokenize("a"):
            raise DataError(
                f"the tokenizer {tokenizer.name_or_path!r} makes no tokens of a text: is its "
                "tokenizer.json there?"
            )
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end-of-text token, so an answer "
                "could never end: choose another --llm"
            )
        prompt, slot, tail = template.partition("{answer}")
        self.end = [*self.end_after(tail), tokenizer.eos_token_id]
        # An answer's first word carries the space before it. SentencePiece adds that by itself,
        # byte-level BPE does not.
        self.adds_space = tokenizer.tokenize("a")[0].startswith("\u2581")
        self.spaced = not slot or prompt.endswith(" ")
        before, after = prompt.removesuffix(" " if slot else "").split("{audio}")
        self.head = with_start(self.ids([before], control=True)[0], tokenizer)
        self.pieces = pieces_of(after, tokenizer)

    @property
    def longest(self) -> int:
        return len(self.head) + self.max_prompt + self.max_answer + 1

    def end_after(self, tail: str) -> list[int]:
        """The id of the control token after {answer}; empty where none is written."""
        if not tail.strip():
            return []
        if tail.strip() not in control_tokens(self.tokenizer):
            raise DataError(
                f"template {self.text!r}: after {{answer}} stands {tail!r}, which is no control "
                f"token of the tokenizer ({', '.join(control_tokens(self.tokenizer))})"
            )
        return [self.tokenizer.convert_tokens_to_ids(tail.strip())]

    def answer_ids(self, answers: list[str]) -> list[list[int]]:
        """Token ids of each answer, as they follow the prompt, without its end."""
        answers = [answer.strip() for answer in answers]
        if self.spaced:
            space = "" if self.adds_space else " "
            return self.ids([space + answer for answer in answers])
        if not self.adds_space:
            return self.ids(answers)
        # after a line break, SentencePiece adds no space
        (line,) = self.ids(["\n"])
        return [ids[len(line) :] for ids in self.ids(["\n" + answer for answer in answers])]

    def ids(self, texts: list[str], control=False) -> list[list[int]]:
        """Token ids of each text. Equal ones are tokenised once: labels and instructions repeat.

        control: whether control tokens written in a text are meant as such.
        """
        if not texts:
            return []
        distinct = list(dict.fromkeys(texts))
        encoded = self.tokenizer(
            distinct,
            add_special_tokens=False,
            split_special_tokens=not control,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        known = dict(zip(distinct, encoded["input_ids"]))
        return [known[text] for text in texts]

    def filled(self, instructions: list[str], tags: list[str]) -> list[list[int]]:
        """Token ids of the template after the prefix, with each instruction and tag in its place.

        The tokenizer itself cuts a text at its control tokens. Here that is done before instruction
        and tag, which may hold one, take their places.
        """
        rows = [[] for _ in instructions]
        for i, piece in enumerate(self.pieces):
            if i % 2:  # a control token
                parts = self.ids([piece], control=True) * len(rows)
            else:
                parts = self.ids([fill(piece, *words) for words in zip(instructions, tags)])
            for row, part in zip(rows, parts):
                row += part
        return rows

    def prompts(
        self, instructions: list[str], tags: list[str] | None = None, longer: dict | None = None
    ) -> list[list[int]]:
        """Token ids after the prefix, one list per instruction.

        Raises DataError, which names the row, where one exceeds max_prompt. Given `longer`, such an
        instruction is shortened instead, never the template, and `longer` gets {row: tokens}.
        """
        tags = tags or [""] * len(instructions)
        rows = self.filled(instructions, tags)
        for i, row in enumerate(rows):
            if len(row) <= self.max_prompt:
                continue
            if longer is None:
                raise DataError(
                    f"instruction {i}, {instructions[i][:40]!r}..., makes a prompt of {len(row):,} "
                    f"tokens, and {self.max_prompt} is the limit: shorten it"
                )
            longer[i], text = len(row), instructions[i]
            while text and len(rows[i]) > self.max_prompt:
                text = text[: len(text) * self.max_prompt // (len(rows[i]) + 1)]
                rows[i] = self.filled([text], [tags[i]])[0]
        return rows

    def encode(
        self, samples: list[dict], problems: list | None = None
    ) -> list[tuple[list[int], int]]:
        """Of each sample: head + prompt + answer + end, and the number of tokens before the answer.

        The prefix goes after `head`. Of several references the first is the answer. Instructions
        and answers that had to be cut are named in the list `problems`.
        """
        tags, longer = [sample.get("tag") or "" for sample in samples], {}
        prompts = self.prompts([sample["instruction"] for sample in samples], tags, longer)
        answers = [sample["answer"] for sample in samples]
        answers = [answer[0] if isinstance(answer, list) else answer for answer in answers]
        answers = self.answer_ids(answers)
        if problems is not None:
            limits = (("prompt", self.max_prompt, longer), ("answer", self.max_answer, None))
            for what, limit, found in limits:
                if found is None:
                    found = {i: len(a) for i, a in enumerate(answers) if len(a) > limit}
                problems += [
                    f"{samples[i]['source']} {samples[i]['id']}: its {what} of {n:,} tokens was "
                    f"cut to {limit}"
                    for i, n in found.items()
                ]
        end = self.end[:1]
        return [
            (self.head + prompt + answer[: self.max_answer] + end, len(self.head) + len(prompt))
            for prompt, answer in zip(prompts, answers)
        ]


def fill(template: str, instruction: str, tag: str) -> str:
    if not tag:
        template = template.replace("{tag} ", "")
    parts = re.split(r"(\{tag\}|\{instruction\})", template)
    words = {"{tag}": tag, "{instruction}": instruction}
    return "".join(words.get(part, part) for part in parts)


# Some templates write today's date: the prompt of a run would change from one day to the next.
ONE_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


def chat(tokenizer) -> str:
    """The tokenizer's chat template with places for prefix, instruction and answer.

    Thinking is switched off where the template has it. Raises DataError where there is no chat
    template, or it takes no such conversation.
    """
    written = tokenizer.chat_template
    if isinstance(written, dict):  # Command R has several
        written = written.get("default")
    if not written:
        raise DataError(
            f"template 'chat': the tokenizer of {tokenizer.name_or_path!r} has no chat template; "
            "choose a model that was tuned to follow instructions, or write a template"
        )
    user = {"role": "user", "content": "{audio}\n{tag} {instruction}"}
    model = {"role": "assistant", "content": "{answer}"}
    how = {"tokenize": False, "enable_thinking": False}
    how["chat_template"] = ONE_DAY + written
    with reading("template 'chat'", "write the template instead: --template='...{audio}...'"):
        asked = tokenizer.apply_chat_template([user], add_generation_prompt=True, **how)
        whole = tokenizer.apply_chat_template([user, model], **how)
    before, _, after = whole.partition("{answer}")
    if not before.startswith(asked):  # a past turn is written in another way than the one to come
        before = asked
    if before.rstrip().endswith("<think>"):
        before = before.rstrip() + "\n\n</think>\n\n"
    found = [token for token in control_tokens(tokenizer) if token in after]
    end = min(found, key=after.index, default="")
    return before + "{answer}" + end


PLACES = ("audio", "instruction", "tag", "answer")


def check_places(template: str) -> None:
    """Raises DataError on a template without its places, or with them in another order."""
    for name in re.findall(r"\{(\w+)\}", template):
        meant = difflib.get_close_matches(name, PLACES, n=1)
        if meant and name not in PLACES:
            raise DataError(f"template {template!r}: did you mean {{{meant[0]}}} by {{{name}}}?")
    before, audio, after = template.partition("{audio}")
    if template.count("{audio}") != 1 or "{instruction}" not in template:
        raise DataError(f"template {template!r} needs {{audio}} once, then {{instruction}}")
    if "{instruction}" in before or "{tag}" in before:
        raise DataError(
            f"template {template!r}: the text before {{audio}} is the same for all samples, "
            "so {instruction} and {tag} must come after it"
        )
    prompt, _, tail = after.partition("{answer}")
    if "{answer}" in before + tail or "{instruction}" not in prompt or "{tag}" in tail:
        raise DataError(f"template {template!r}: {{answer}} may stand once, after {{instruction}}")


def pieces_of(text: str, tokenizer) -> list[str]:
    """Text, control token, text, control token, ..., text.

    Space beside a control token is gone where the tokenizer takes it into the token.
    """
    control = sorted(control_tokens(tokenizer), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, control))})", text)
    known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    for i in range(1, len(pieces), 2):
        token = known.get(pieces[i])
        if token and token.lstrip:
            pieces[i - 1] = pieces[i - 1].rstrip()
        if token and token.rstrip:
            pieces[i + 1] = pieces[i + 1].lstrip()
    return pieces


def first_head(template: Template) -> list[int]:
    """The head of models that do not keep it: any beginning-of-text token came first."""
    tokenizer = template.tokenizer
    before = template.text.partition("{audio}")[0]
    ids = template.ids([before], control=True)[0]
    if tokenizer.bos_token_id in (None, tokenizer.eos_token_id):
        return ids
    return [tokenizer.bos_token_id, *ids]


def control_tokens(tokenizer) -> list[str]:
    """All control tokens, as they are written."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def with_start(ids: list[int], tokenizer) -> list[int]:
    """The ids of a prompt's beginning, after the tokens that the tokenizer itself puts there.

    Where one merely exists, as in SmolLM2-Instruct, it was not used in training either.
    """
    whole, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    places = range(len(whole) - len(plain) + 1)
    start = next((whole[:i] for i in places if whole[i : i + len(plain)] == plain), [])
    return ids if ids[: len(start)] == start else start + ids
