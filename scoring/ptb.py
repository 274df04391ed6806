"""The Penn-Treebank tokens that coco-caption compares."""

import functools
import re

_L, _A, _N = r"[^\W\d_]", r"[^\W_]", r"[a-zA-Z0-9]"  # a letter; a letter or digit; one of ASCII's
_DOTTED = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"  # dog, song.The: a missing space makes one token
_STARTS = """A According After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our She Since
    So Some Such That The Their Then There These They This We What When While Yet You""".split()
_ABBREVIATIONS = """adm al ala alex apr ariz assn assoc atty aug ave bldg blvd brig bros calif capt cf cie cmdr co col colo comdr
    conn corp cos cpl ct dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov hon inc ind insp intl jan jos jr
    jul jun kan ky lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms mt natl neb nev nov oct okla penn pfc ph
    plc pres prof profs pvt rd rep reps rev rt sen sens sep sept seq sgt spc sq sr st ste supt tel tenn thu thurs treas tue tues
    univ va vs vt wed wis wm wyo""".split()
_STATES = "Ark Del Ill La Mass Miss Ore Pa Tex Wash".split()  # abbreviations only with a capital
_END = r"[^\s\"<>|().!?,;:'&-]"  # what an address can end with

# A lexer: at each place the rule with the longest match wins, the first of equals. A rule's first group is the token, so what
# it wants to see behind the token counts for its length.
_RULES = [
    re.compile(rule)
    for rule in (
        rf"({_DOTTED})",
        rf"({_DOTTED}\.)[,;:]",  # hat., is taken for an abbreviation
        rf"((?:[dDoOlLnN]')?{_A}+(?:[-_](?:[dDoOlL]')?{_A}+)*)",
        rf"({_A}+,{_A}+-{_A}+)",  # o'clock, hi-hat, a_b, 4x4
        rf"({_N}+(?:-[a-zA-Z]+){{0,2}}(?:/{_N}+(?:-[a-zA-Z]+){{0,2}}){{1,2}})",  # and/or, 3/4-time
        r"([A-Z]+(?:[&+][A-Z]+)+)",
        r"(C\+\+|c\+\+|[cCfF]#|[A-Z]{1,2}\$)",  # R&B, C#, US$
        rf"({_L}+)[nN]['`][tT](?!{_A})",
        rf"([nN]['`][tT])(?!{_A})",  # do | n't
        rf"('(?:[sSmMdD]|re|RE|ve|VE|ll|LL))(?!{_A})",
        rf"('[tT])(?:is|was)(?!{_A})",  # dog | 's, 't | is
        rf"('[nN]'|'(?:[eE]m|EM|[tT]ill?|[cC]ause|[nN])(?!{_A}))",
        rf"(['’]\d\ds?)(?!['\"]|{_A})",  # rock | 'n' | roll, '80s
        r"((?:[a-zA-Z]\.){2,}|[Pp][Hh]\.[Dd]\.)",
        rf"([a-zA-Z]\.)(?!\s+(?:{'|'.join(_STARTS)})\b)",  # U.S., in A. B. minor
        rf"((?i:{'|'.join(_ABBREVIATIONS)})\.|(?:{'|'.join(f'{w}|{w.upper()}' for w in _STATES)})\.)",
        rf"([cC]'mon|[mM]a'am|[nN]e'er|[oO]l'|[qQ]u'{_L}+|[yYjJ]'(?={_L}))",
        r"((?i:art|ca|figs?|nos?|op|pp|prop)\.)\s*\d",  # No. 5
        r"([-+]?(?:\d*(?:[.,:]\d+)+|\d+))",
        rf"(\d+(?:[.,]\d+)+(?:-{_A}+)+)",  # 1,000.5, 1.5-inch
        rf"(https?://[^\s\"<>|()]+{_END})",
        r"(\w[\w.+-]*@\w[\w.-]*\w)",
        r"([@#][a-zA-Z][a-zA-Z_]*)",
        rf"((?:www\.(?:[^\s\"<>|.!?()}}{{,]+\.)+[a-zA-Z]{{2,4}}|(?:{_N}+\.)+(?:com|net|org|edu))(?:/[^\s\"<>|()]+{_END})?)",
        r"(</?[a-zA-Z!][^<>]*>)",
        rf"([<>]?[:;=][-o*']?(?:[()\[\]]|[DPdpO3](?!{_A})))",  # <br/>, :-)
        r"([?!]{2,}|\*+|_+|#+|-{6,}|\s+|\S)",
    )
]
_PLAIN = re.compile(
    r"([a-zA-Z]+)(?:\s+|$)"
)  # what most captions consist of; no rule matches more here
_SPLIT = {
    w.replace(" ", ""): w.split()
    for w in ("can not", "gon na", "got ta", "lem me", "gim me", "wan na")
}
_DROPPED = set("'\"`.?!,:-;")
_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
)
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("“”«»…–—‘‹›", " "),
        **{a: f" {b} " for a, b in zip("¢£€½¼¾⅓⅔", "cents # $ 1/2 1/4 3/4 1/3 2/3".split())},
    }
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}


def ptb_tokenize(text):
    """The Penn-Treebank tokens (a list of str) that coco-caption compares: lower-cased, without its list of punctuation.

    Written from the behaviour of Stanford CoreNLP 3.4.1's PTBTokenizer as coco-caption calls it, quirks kept: brackets stay as
    -lrb-, and `?!` stays. Known differences: the original looks into the caption on the next line to decide whether a final
    `B.` keeps its period (here it does), makes one token of `1 1/2` and of `(555) 123-4567`, and keeps a curly ’ in ’n.
    """
    if not text.isascii():
        text = re.sub("’(?!\\d\\d)", "'", re.sub("[\U00010000-\U0010ffff]", " ", text)).translate(
            _SIGNS
        )
    if "&" in text:
        text = re.sub("|".join(_ENTITIES), lambda m: _ENTITIES[m[0]], text)
    tokens, at, text = [], 0, text.strip()
    while at < len(text):
        plain = _PLAIN.match(text, at)
        m = plain or max(
            (rule.match(text, at) for rule in _RULES), key=lambda m: m.end() if m else -1
        )
        at = m.end() if plain else m.end(1)
        token = m[1].lower()
        if token not in _DROPPED:
            bracket = token[-1] in "()" or token in "[]{}"  # also in a smiley, but :] stays
            tokens += (
                _SPLIT.get(token) or (token.translate(_BRACKETS) if bracket else token).split()
            )
    return tokens


_tokens = functools.lru_cache(2**15)(
    ptb_tokenize
)  # once for all metrics; the lists are shared, so nobody changes them
