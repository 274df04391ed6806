r"""Penn-Treebank tokens as coco-caption compares them: lower-cased, most punctuation dropped.

    ptb_tokenize("A dog's bark (loud).")    ["a", "dog", "'s", "bark", "-lrb-", "loud", "-rrb-"]

A lexer: at each place the rule with the longest match wins, the first of equals. A rule's first
group is the token, so that the text it wants to see behind the token counts for its length.
"""

import functools
import re

_L, _A, _N = r"[^\W\d_]", r"[^\W_]", r"[a-zA-Z0-9]"  # a letter; a letter or digit; one of ASCII's
_DOTTED = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"
_FRACTION = rf"{_N}+(?:-[a-zA-Z]+){{0,2}}"
_STARTS = (  # words that begin a sentence
    "A|According|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|"
    "One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|"
    "While|Yet|You"
)
_ABBREVIATIONS = (
    "adm|al|ala|alex|apr|ariz|assn|assoc|atty|aug|ave|bldg|blvd|brig|bros|calif|capt|cf|cie|cmdr|"
    "co|col|colo|comdr|conn|corp|cos|cpl|ct|dec|dept|det|dr|drs|elec|ens|esq|est|etc|ext|feb|fla|"
    "fri|ft|ga|gen|gov|hon|inc|ind|insp|intl|jan|jos|jr|jul|jun|kan|ky|lt|ltd|maj|mar|md|messrs|"
    "mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|mt|natl|neb|nev|nov|oct|okla|penn|pfc|ph|plc|pres|"
    "prof|profs|pvt|rd|rep|reps|rev|rt|sen|sens|sep|sept|seq|sgt|spc|sq|sr|st|ste|supt|tel|tenn|"
    "thu|thurs|treas|tue|tues|univ|va|vs|vt|wed|wis|wm|wyo"
)
_STATES = "Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"  # abbreviations only with a capital
_HOST = rf"www\.(?:[^\s\"<>|.!?()}}{{,]+\.)+[a-zA-Z]{{2,4}}|(?:{_N}+\.)+(?:com|net|org|edu)"
_PATH_END = r"[^\s\"<>|().!?,;:'&-]"

_RULES = [
    rf"({_DOTTED})",  # dog; song.The, since a missing space makes one token
    rf"({_DOTTED}\.)[,;:]",  # hat., is taken for an abbreviation
    rf"((?:[dDoOlLnN]')?{_A}+(?:[-_](?:[dDoOlL]')?{_A}+)*)",  # o'clock, hi-hat, a_b, 4x4
    rf"({_A}+,{_A}+-{_A}+)",
    rf"({_FRACTION}(?:/{_FRACTION}){{1,2}})",  # and/or, 3/4-time
    r"([A-Z]+(?:[&+][A-Z]+)+)",  # R&B
    r"(C\+\+|c\+\+|[cCfF]#|[A-Z]{1,2}\$)",  # C#, US$
    rf"({_L}+)[nN]['`][tT](?!{_A})",  # do, of don't
    rf"([nN]['`][tT])(?!{_A})",  # n't
    rf"('(?:[sSmMdD]|re|RE|ve|VE|ll|LL))(?!{_A})",  # dog | 's
    rf"('[tT])(?:is|was)(?!{_A})",  # 't | is
    rf"('[nN]'|'(?:[eE]m|EM|[tT]ill?|[cC]ause|[nN])(?!{_A}))",  # rock | 'n' | roll
    rf"(['’]\d\ds?)(?!['\"]|{_A})",  # '80s
    r"((?:[a-zA-Z]\.){2,}|[Pp][Hh]\.[Dd]\.)",  # U.S.
    rf"([a-zA-Z]\.)(?!\s+(?:{_STARTS})\b)",  # in A. B. minor
    rf"((?i:{_ABBREVIATIONS})\.|(?:{_STATES}|{_STATES.upper()})\.)",
    rf"([cC]'mon|[mM]a'am|[nN]e'er|[oO]l'|[qQ]u'{_L}+|[yYjJ]'(?={_L}))",
    r"((?i:art|ca|figs?|nos?|op|pp|prop)\.)\s*\d",  # No. 5
    r"([-+]?(?:\d*(?:[.,:]\d+)+|\d+))",  # 1,000.5
    rf"(\d+(?:[.,]\d+)+(?:-{_A}+)+)",  # 1.5-inch
    rf"(https?://[^\s\"<>|()]+{_PATH_END})",
    r"(\w[\w.+-]*@\w[\w.-]*\w)",
    r"([@#][a-zA-Z][a-zA-Z_]*)",
    rf"((?:{_HOST})(?:/[^\s\"<>|()]+{_PATH_END})?)",
    r"(</?[a-zA-Z!][^<>]*>)",  # <br/>
    rf"([<>]?[:;=][-o*']?(?:[()\[\]]|[DPdpO3](?!{_A})))",  # :-)
    r"([?!]{2,}|\*+|_+|#+|-{6,}|\s+|\S)",
]
_RULES = [re.compile(rule) for rule in _RULES]
_PLAIN = re.compile(r"([a-zA-Z]+)(?:\s+|$)")  # most captions' words; no rule matches more here

_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_SIGNS = dict.fromkeys("“”«»…–—‘‹›", " ") | {"\xad": ""}  # a soft hyphen joins
_SIGNS |= {
    sign: f" {words} "
    for sign, words in zip(
        "¢£€\x80¤½¼¾⅓⅔", ["cents", "#", "$", "$", "$", "1/2", "1/4", "3/4", "1/3", "2/3"]
    )
}
_SIGNS = str.maketrans(_SIGNS)
# No token for the original: controls, marks of direction, odd dashes, private use, halves of a
# surrogate pair, and all above the first 65,536, such as emoji.
_UNKNOWN = re.compile(
    "[\0-\x08\x0e-\x1b\x7f\x81-\x84\x86-\x9f\u061c\u180e\u200b-\u200f\u2012\u2015\u201b\u2024\u2025"
    "\u2027\u202a-\u202e\u203c\u203d\u2043\u2045-\u205e\u2060-\u206f\ufe0f\ufeff\ufffd\ue000-\uf8ff"
    "\ud800-\udfff\U00010000-\U0010ffff]"
)
_BRACKETS = {"(": "lrb", ")": "rrb", "[": "lsb", "]": "rsb", "{": "lcb", "}": "rcb"}
_BRACKETS = str.maketrans({bracket: f"-{name}-" for bracket, name in _BRACKETS.items()})
_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "gimme": "gim me",
    "wanna": "wan na",
}
_DROPPED = set("'\"`.?!,:-;")


def ptb_tokenize(text: str) -> list[str]:
    """The tokens that coco-caption compares.

    Written from the behaviour of Stanford CoreNLP 3.4.1's PTBTokenizer as coco-caption calls it,
    quirks kept: brackets stay as -lrb-, and `?!` stays. Known differences: the original looks into
    the caption on the next line to decide whether a final `B.` keeps its period (here it does). It
    makes one token of `1 1/2` and of `(555) 123-4567`, and keeps a curly ’ in ’n. It keeps a
    combining mark, as Thai and Hindi write vowels, and the hyphen U+2010 in their words, and parts
    a word at ².
    """
    text = _UNKNOWN.sub(" ", text)
    if not text.isascii():
        text = re.sub(r"’(?!\d\d)", "'", text).translate(_SIGNS)
    if "&" in text:
        text = re.sub("|".join(_ENTITIES), lambda entity: _ENTITIES[entity[0]], text)
    text, start, tokens = text.strip(), 0, []
    while start < len(text):
        if match := _PLAIN.match(text, start):
            start = match.end()
        else:
            matches = [rule.match(text, start) for rule in _RULES]
            match = max(filter(None, matches), key=re.Match.end)
            start = match.end(1)
        tokens += _kept(match[1].lower())
    return tokens


def _kept(token: str) -> list[str]:
    """The tokens that are compared of one, [] of punctuation and white space."""
    if token in _DROPPED:
        return []
    if token[-1] in "()" or token in "[]{}":  # also in a smiley, but :] stays
        token = token.translate(_BRACKETS)
    return _SPLIT.get(token, token).split()


@functools.lru_cache(2**15)
def cached_tokens(text: str) -> tuple[str, ...]:
    """`ptb_tokenize`, once for all metrics."""
    return tuple(ptb_tokenize(text))
