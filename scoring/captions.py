"""The caption metrics that torchmetrics lacks: CIDEr-D, SPICE, SPIDEr, and coco-caption's BLEU and ROUGE-L item by item.

    captions ──► ptb_tokenize ──► n-grams ──► cider_d (n,), bleu_counts (n, 10) ──► bleu, rouge_l (n,)      functions
    update(preds, target) ──► utf-8 bytes ──► gather ──► all captions ──► CiderD, Spice, Spider              Metrics

The functions give a value per item, which is what a bootstrap draws from; a set's ROUGE-L and CIDEr-D are their means, its BLEU
comes from the summed counts. The Metrics keep the captions themselves, since CIDEr-D's document frequencies cover the whole set:
batches and ranks cannot be averaged. Scores lie in 0..1, CIDEr-D in 0..10 and SPIDEr in 0..5.5; multiply by 100 for tables.

torchmetrics' BLEUScore equals `bleu` in float32 where it gets PTB tokens joined by spaces and references sorted by length (of
two as close it takes the first, coco-caption the shorter), but has no counts per item. Its ROUGE-L takes the F1 of one reference,
coco-caption's F_1.2 the best precision and the best recall of any.
"""

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

# --- tokens ---------------------------------------------------------------------------------------------------------------

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


def _checked(preds, target):
    if isinstance(preds, str) or isinstance(target, str):
        raise ValueError(
            "give lists: predictions ['...', ...] and for each its references [['...', ...], ...], not a single str"
        )
    preds, target = list(preds), list(target)
    if len(preds) != len(target):
        raise ValueError(
            f"{len(preds)} predictions but {len(target)} lists of references: give one list for each prediction"
        )
    for i, (pred, refs) in enumerate(zip(preds, target)):
        if not isinstance(pred, str):
            raise ValueError(f"prediction {i} is {pred!r}, not a str: give '' where there is none")
        if not isinstance(refs, (list, tuple)):
            raise ValueError(
                f"item {i}: the references are {refs!r:.60}, not a list of str: put [] around a single one"
            )
        if not refs:
            raise ValueError(
                f"item {i}: the list of references is empty: leave the item out, or give at least one"
            )
        if wrong := [ref for ref in refs if not isinstance(ref, str)]:
            raise ValueError(f"item {i}: the reference {wrong[0]!r} is not a str: leave it out")
    return preds, target


# --- n-grams: BLEU and CIDEr-D ----------------------------------------------------------------------------------------------


def _ngrams(preds, target, orders=4):
    """Numbers of references (n,), their items (R,), captions' lengths (n + R,), predictions first, and for each order sorted
    (E,) arrays caption, n-gram and count with the number of n-grams."""
    preds, target = _checked(preds, target)
    captions = [_tokens(text) for text in preds] + [
        _tokens(text) for refs in target for text in refs
    ]
    words = {}
    ids = np.array(
        [words.setdefault(word, len(words)) for caption in captions for word in caption], np.int64
    )
    sizes, lengths = (
        np.array([len(refs) for refs in target], int),
        np.array([len(caption) for caption in captions], int),
    )
    owner, gram, found = np.repeat(np.arange(len(captions)), lengths), ids, []
    for k in range(orders):
        if (
            k
        ):  # an n-gram is an (n-1)-gram and a word; numbered anew, so that the product stays small
            gram = np.unique(gram[:-1] * len(words) + ids[k:], return_inverse=True)[1].reshape(-1)
        inside, total = owner[: len(gram)] == owner[k:], gram.max(initial=0) + 1
        key, count = np.unique(
            owner[: len(gram)][inside] * total + gram[inside], return_counts=True
        )
        found.append((key // total, key % total, count, total))
    return sizes, np.repeat(np.arange(len(sizes)), sizes), lengths, found


def _lookup(keys, values, wanted):
    """The values at `wanted` (E,) of a table with sorted keys, 0 where there is none."""
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def cider_d(preds, target):
    """CIDEr-D of each item (n,), float64 in 0..10, with document frequencies from this whole set's references.

    preds: n str; target: n lists of str. Vedantam et al. 2015, section 7: tf-idf vectors of 1- to 4-grams, the prediction's
    clipped to the reference's, cosine, a Gaussian penalty (sigma 6) of the difference in length, mean over references and
    orders, times 10. As in coco-caption, length is the number of bigrams. One item alone scores 0 (log(1 / 1) weighs all).
    Raises ValueError where the lengths differ, an item has no reference, or something is not a str.
    """
    sizes, item, lengths, orders = _ngrams(preds, target)
    n, cosines = len(sizes), np.zeros(len(item))
    for caption, gram, count, total in orders:
        ref = caption >= n
        home = item[caption[ref] - n]  # (E of references,) items
        documents = np.bincount(np.unique(home * total + gram[ref]) % total, minlength=total)
        weight = count * (np.log(max(n, 1)) - np.log(documents.clip(min=1)))[gram]
        norm = np.sqrt(np.bincount(caption, weight**2, minlength=len(lengths)))
        pred = _lookup(caption[~ref] * total + gram[~ref], weight[~ref], home * total + gram[ref])
        dot = np.bincount(
            caption[ref] - n, np.minimum(pred, weight[ref]) * weight[ref], minlength=len(item)
        )
        norms = norm[item] * norm[n:]
        cosines += np.divide(dot, norms, out=np.zeros(len(item)), where=norms > 0)
    bigrams = (lengths - 1).clip(min=0)
    cosines *= np.exp(-((bigrams[item] - bigrams[n:]) ** 2) / (2 * 6**2)) / len(orders)
    return torch.from_numpy(10 * np.bincount(item, cosines, minlength=n) / sizes)


def bleu_counts(preds, target):
    """What BLEU is made of, (n, 10) float64: each item's matches of orders 1-4, n-grams of orders 1-4, length, reference length.

    A match is clipped to the most that one reference has; the reference length is the closest one's, the shorter of two. Rows
    add up: `bleu(counts.sum(0))` is the set's BLEU-1..4, `bleu(counts)` each item's, `bleu(weights @ counts)` a bootstrap's.
    Raises as `cider_d`.
    """
    sizes, item, lengths, orders = _ngrams(preds, target)
    n, counts = len(sizes), []
    for caption, gram, count, total in orders:
        ref = caption >= n
        key = item[caption[ref] - n] * total + gram[ref]
        rank = np.lexsort((-count[ref], key))
        keys, first = np.unique(key[rank], return_index=True)  # the most of each (item, n-gram)
        most = _lookup(keys, count[ref][rank][first], caption[~ref] * total + gram[~ref])
        counts.append(np.bincount(caption[~ref], np.minimum(count[~ref], most), minlength=n))
    long = lengths[:n]
    rank = np.lexsort((lengths[n:], abs(lengths[n:] - long[item]), item))
    closest = lengths[n:][rank][np.cumsum(sizes) - sizes] if n else long
    return torch.from_numpy(
        np.stack([*counts, *((long - k).clip(min=0) for k in range(4)), long, closest], 1).astype(
            float
        )
    )


def bleu(counts):
    """BLEU-1..4 (..., 4), float64 in 0..1, of counts (..., 10) as `bleu_counts` gives them, added up over items for a set's.

    Papineni et al. 2002, with coco-caption's two small numbers in place of smoothing, so that no match gives about 0.
    """
    matches, grams, (length, reference) = (
        counts[..., :4],
        counts[..., 4:8],
        counts[..., 8:].unbind(-1),
    )
    precision = ((matches + 1e-15) / (grams + 1e-9)).log().cumsum(-1) / torch.arange(
        1, 5, device=counts.device
    )
    ratio = (length + 1e-15) / (reference + 1e-9)
    return (precision + (1 - 1 / ratio).clamp(max=0)[..., None]).exp()


def rouge_l(preds, target):
    """ROUGE-L of each item (n,), float64 in 0..1, by coco-caption's convention.

    Lin 2004: F of the longest common subsequence with beta = 1.2, from the best precision and the best recall over the item's
    references. 0 where the prediction has no token. Raises as `cider_d`.
    """
    scores = []
    for pred, refs in zip(*_checked(preds, target)):
        words, place, p, r = _tokens(pred), {}, 0.0, 0.0
        for i, word in enumerate(words):
            place[word] = place.get(word, 0) | 1 << i
        for ref in map(_tokens, refs):
            row = full = (
                1 << len(words)
            ) - 1  # a 0 where the subsequence grows: a row of the usual table as one integer
            for word in ref:
                hit = row & place.get(word, 0)
                row = (row + hit | row - hit) & full
            common = len(words) - row.bit_count()
            p, r = max(p, common / max(len(words), 1)), max(r, common / max(len(ref), 1))
        scores.append((1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0)
    return torch.tensor(scores, dtype=torch.float64)


# --- Metrics ----------------------------------------------------------------------------------------------------------------


class _Captions(Metric):
    """Keeps all captions as utf-8 bytes, a line of JSON for each item: tensors are what torchmetrics gathers over ranks."""

    is_differentiable, higher_is_better, full_state_update = False, True, False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, preds, target):
        """Adds items: preds, a sequence of str, and target, for each of them a non-empty list of str. Raises ValueError else."""
        lines = "".join(json.dumps(pair) + "\n" for pair in zip(*_checked(preds, target)))
        self.lines.append(
            torch.from_numpy(np.frombuffer(lines.encode(), np.uint8).copy()).to(self.device)
        )

    def sync(self, *args, **kwargs):
        if (
            isinstance(self.lines, list) and not self.lines
        ):  # torchmetrics would send an empty float32, and gloo abort
            self.lines.append(torch.zeros(0, dtype=torch.uint8, device=self.device))
        super().sync(*args, **kwargs)

    def captions(self):
        """(preds, target) of all items so far, of all ranks' while the metric is synced."""
        lines = (
            bytes(dim_zero_cat(self.lines).byte().cpu().numpy()).decode() if len(self.lines) else ""
        )
        if not lines:
            raise ValueError(f"{type(self).__name__} has no captions to score: call update first")
        return tuple(zip(*map(json.loads, lines.splitlines())))


class CiderD(_Captions):
    """CIDEr-D of all captions given, float64 in 0..10: the mean of `cider_d`, which says more."""

    def compute(self):
        return cider_d(*self.captions()).mean()


class SpiceMissing(RuntimeError):
    """SPICE cannot run here. The message names each missing piece and the command that gets it."""


_PIECES = [
    "spice-1.0.jar",
    *(
        f"lib/{name}.jar"
        for name in (
            "Meteor-1.5",
            "SceneGraphParser-1.0",
            "stanford-corenlp-3.6.0",
            "stanford-corenlp-3.6.0-models",
        )
    ),
]
_GET_JARS = "pip install --no-deps --target spice pycocoevalcap && export SPICE_HOME=$PWD/spice/pycocoevalcap/spice"
_GET_PARSER = (
    "curl -LO http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip && "
    "unzip -j stanford-corenlp-full-2015-12-09.zip '*/stanford-corenlp-3.6.0*.jar' -d {}/lib"
)


@functools.lru_cache(
    4
)  # Spice and Spider of one collection score the same captions: Java takes minutes
def _run_spice(command, engine, timeout, captions, n):
    """The mean over n captions, given as SPICE's input, and each one's score by its id, None without a JavaScript engine."""
    with tempfile.TemporaryDirectory() as folder:
        source, result, out, err = (
            Path(folder) / name for name in ("in.json", "out.json", "stdout", "stderr")
        )
        source.write_text(captions)
        command = [*command, str(source), *(["-out", str(result)] if engine else [])]
        try:
            with (
                out.open("wb") as o,
                err.open("wb") as e,
            ):  # files: a pipe would wait for a killed child's children
                code = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=o, stderr=e, timeout=timeout
                ).returncode
            if code:
                raise ValueError(f"Java ended with code {code}")
            if engine:
                scores = {
                    row["image_id"]: float(row["scores"]["All"]["f"])
                    for row in json.loads(result.read_text())
                }
                mean, count = sum(scores.values()) / n, len(scores)
            else:
                said = re.search(
                    r"All tuples\s+f-score:\s*([\d.]+).*?num images:\s*(\d+)",
                    out.read_text(errors="replace"),
                    re.S,
                )
                scores, mean, count = (
                    None,
                    float(said[1]) if said else -1,
                    int(said[2]) if said else 0,
                )
            if count != n or not 0 <= mean <= 1:
                raise ValueError(
                    f"read a mean of {mean} over {count} captions" if count else "it names no score"
                )
        except (ValueError, TypeError, KeyError, OSError, subprocess.TimeoutExpired) as error:
            why = (
                "out of time: give a longer timeout"
                if isinstance(error, subprocess.TimeoutExpired)
                else error
            )
            last = (
                err.read_text(errors="replace").strip() or out.read_text(errors="replace").strip()
            )[-800:]
            raise RuntimeError(
                f"SPICE gave no score for {n} captions ({why}): {shlex.join(command)}\n{last}"
            ) from error
    return mean, scores


class Spice(_Captions):
    """SPICE of all captions given, float64 in 0..1: the mean F1 over the tuples of scene graphs (Anderson et al. 2016).

    A subprocess to the official spice-1.0.jar, since no other implementation exists. `home` (default: SPICE_HOME) is the folder
    with the jar and lib/; java is JAVA_HOME's, else PATH's; `memory` is its -Xmx; `timeout` (seconds) bounds one run, which takes
    minutes for a thousand clips. Java up to 14, and a later one with nashorn-core and its asm jars in lib/, has the JavaScript
    engine that SPICE needs to write scores per item; else the printed mean is read, which has 3 decimals, and `per_item(preds,
    target)`, (n,) float64, gives None. Predictions without a token score 0 unsent. Under torch.distributed each rank runs Java.
    Raises SpiceMissing when constructed, and RuntimeError with Java's last words where a run fails, hangs or gives no score.
    """

    def __init__(self, home=None, memory="8G", timeout=2 * 3600, **kwargs):
        super().__init__(**kwargs)
        home, version, missing = home or os.environ.get("SPICE_HOME"), None, []
        home = home and Path(home).expanduser().resolve()
        java = shutil.which(
            "java", path=Path(os.environ.get("JAVA_HOME") or "/nowhere", "bin")
        ) or shutil.which("java")
        if java:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                said = subprocess.run(
                    [java, "-version"], capture_output=True, check=True, timeout=60
                )
                version = re.search(rb'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
        if not version:
            missing.append(
                f"Java 8 or later ({java or 'none on PATH or in JAVA_HOME'}): apt-get install default-jre-headless"
            )
        where, folder = (
            (f"not in {home}", shlex.quote(str(home)))
            if home
            else ("SPICE_HOME is not set", "$SPICE_HOME")
        )
        for name in _PIECES:
            if not home or not (home / name).is_file():
                missing.append(
                    f"{name} ({where}): "
                    + (_GET_PARSER if "corenlp" in name else _GET_JARS).format(folder)
                )
        if missing:
            raise SpiceMissing("\n  ".join(["SPICE cannot run; it lacks", *missing]))
        self.timeout, self.engine = (
            timeout,
            int(version[1]) < 15 or any((home / "lib").glob("nashorn-core*.jar")),
        )
        # a wildcard, since the jar's manifest knows no engine; English, since others print 0,123; never -cache: Java >= 16 ends
        self.command = (
            java,
            f"-Xmx{memory}",
            "-Duser.language=en",
            "-cp",
            f"{home / _PIECES[0]}{os.pathsep}{home}/lib/*",
            "edu.anu.spice.SpiceScorer",
        )

    def _score(self, preds, target):
        preds, target = _checked(preds, target)
        rows = [
            {"image_id": i, "test": pred, "refs": target[i]}
            for i, pred in enumerate(preds)
            if _tokens(pred)
        ]
        mean, scores = (
            _run_spice(self.command, self.engine, self.timeout, json.dumps(rows), len(rows))
            if rows
            else (0.0, {})
        )
        return mean * len(rows) / max(len(preds), 1), None if scores is None else [
            scores.get(i, 0.0) for i in range(len(preds))
        ]

    def per_item(self, preds, target):
        scores = self._score(preds, target)[1]
        return None if scores is None else torch.tensor(scores, dtype=torch.float64)

    def compute(self):
        return torch.tensor(self._score(*self.captions())[0], dtype=torch.float64)


class Spider(Spice):
    """SPIDEr = (CIDEr-D + SPICE) / 2 of all captions given, float64 in 0..5.5 (Liu et al. 2017). Otherwise as Spice."""

    def per_item(self, preds, target):
        scores = super().per_item(preds, target)
        return None if scores is None else (cider_d(preds, target) + scores) / 2

    def compute(self):
        return (cider_d(*self.captions()).mean() + super().compute()) / 2
