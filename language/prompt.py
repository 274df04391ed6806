"""An instruction -> tokens, with a place for the prefix."""

import re

from disk import DataError


class Template:
    """Tokens around the prefix.

    `{audio}` is the place of the prefix, `{instruction}` of the instruction, `{tag}` of the
    sample's tag (the released code has one for each data set); it vanishes where there is none.

        "{audio}{instruction}"                                                   GPT-2, as in Eq. 1
        "USER: <Speech>{audio}</Speech> {tag} {instruction}\\nASSISTANT:"        Vicuna, as released

    The answer follows after a space, is cut at `max_answer` tokens, and ends with the end-of-text
    token. `head` holds the tokens before the prefix. Control tokens of the template count; those in
    an instruction, a tag or an answer are plain text. Raises DataError on a template without its
    places, and on a tokenizer without an end-of-text token.
    """

    def __init__(self, template: str, tokenizer, max_answer=150, max_prompt=512):
        if template.count("{audio}") != 1 or "{instruction}" not in template:
            raise DataError(f"template {template!r} needs {{audio}} once, then {{instruction}}")
        self.before, self.after = template.split("{audio}")
        if "{instruction}" in self.before:
            raise DataError(
                f"template {template!r}: the text before {{audio}} is the same for all samples, "
                "so {instruction} must come after it"
            )
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-text token: an answer could never end")
        self.tokenizer, self.max_answer, self.max_prompt = tokenizer, max_answer, max_prompt
        self.head = self.ids([self.before], control=True)[0]
        control = "|".join(map(re.escape, tokenizer.all_special_tokens))
        self.pieces = re.split(f"({control})", self.after)  # text, control token, text, ...
        if tokenizer.bos_token_id not in (None, tokenizer.eos_token_id):
            self.head = [tokenizer.bos_token_id, *self.head]
        # SentencePiece adds this space by itself; byte-level BPE does not.
        self.space = "" if tokenizer.tokenize("a")[0].startswith("\u2581") else " "

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
        answers = self.ids([self.space + answer.strip() for answer in answers])
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
        end = [self.tokenizer.eos_token_id]
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
