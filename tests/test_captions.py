import csv
import json
import math
import pickle
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection
from torchmetrics.functional.text import bleu_score

from scoring import ptb
from scoring.captions import CiderD, bleu, bleu_counts, cider_d, rouge_l
from scoring.ptb import ptb_tokenize

# prediction | reference | ...; lines that begin with spaces continue the one before
OWN = """
A dog barks twice while a car drives by. | A dog is barking as a car passes by. | A car drives past
    and a dog barks. | Dog barking, then a vehicle passing | A dog barks two times near a road.
Rain falls on a tin roof | Heavy rain falls on a tin roof. | Rain is hitting a metal roof | The rain
    patters on a rooftop | Rainfall on a hard surface | Water drips onto a roof made of tin
A man speaks and a crowd laughs | A man is speaking and people laugh | A man gives a speech as an
    audience is laughing | A man's voice, followed by laughter
An engine idles, then it revs loudly | A motor is idling and revving | An engine idles and then revs
    up loudly | A truck engine revs
Birds chirp in the distance | Birds are chirping in the background | Several birds tweet far away
Someone isn't playing the high-pitched whistle (softly) | A person can't play a high-pitched whistle
    | A "high-pitched" whistle is blown softly | Someone blows a whistle (quietly)
water flows | Water is flowing in a small stream | A stream of water gurgles | water flows
A baby cries; a woman sings a lullaby... | A baby is crying while a woman sings | A woman sings to a
    crying baby | An infant cries and a woman is singing softly
Two people talk at 10:30 p.m. in the U.S. | People are talking at 10:30 p.m. | Two people talk late
    at night in the U.S. | A man and a woman have a conversation
music music music music plays | Upbeat music plays | Electronic music is playing with a 4/4 beat |
    R&B music plays over a speaker
A café's espresso machine hisses | An espresso machine is hissing in a café | Steam hisses from a
    coffee machine | A machine hisses while cups clink
A train horn blows as it's approaching the station | A train blows its horn | A train horn blares
    while the train approaches | The horn of a train blows loudly as it comes closer to the station
    | A train is approaching and it honks | train horn
"""


def floats(text):
    return [float(number) for number in text.split()]


# CIDEr-D, ROUGE-L, BLEU-1..4 by coco-caption, its counts, and what it gives per item
SCORES = {
    "own_small_v1": {
        "score": floats(
            """
            1.5967442464727866 0.665397059293529 0.7976190476095522 0.604628312946034
            0.41815341880633045 0.25866223903782143
            """
        ),
        "counts": [67, 33, 12, 3, 84, 72, 60, 49, 84, 80],
        "cider_d": floats(
            """
            2.0285465163311702 2.70620239699198 0.5686884836581835 1.434702283028482
            0.9351195045479743 1.4196771019817653 1.9796740513594735 2.1548642285015385
            2.035871471469336 0.7642996805979198 1.6398357404563133 1.4934494987493072
            """
        ),
        "rouge_l": floats(
            """
            0.5555555555555556 0.9104477611940297 0.42857142857142855 0.7904967602591793
            0.5366568914956013 0.48605577689243035 1.0 0.625 0.7777777777777778 0.5236051502145923
            0.5 0.850597609561753
            """
        ),
        "bleu_4": floats(
            """
            6.55996556926105e-05 0.9999999995958335 8.307018471648734e-09 6.14788152834528e-05
            1.2574334290280229e-08 7.506238536604585e-09 0.0009999999991250007 5.721248422925795e-05
            8.555261856594855e-05 9.302577370852147e-09 1.428720214271959e-08 5.1697315389526734e-05
            """
        ),
    },
    "own_small_v1_single_ref": {
        "score": floats(
            """
            2.122791293415276 0.4482817025730408 0.47619047618480725 0.3544874830768139
            0.23248803308725535 0.16654505646512538
            """
        ),
        "counts": [40, 19, 6, 3, 84, 72, 60, 49, 84, 80],
        "cider_d": floats(
            """
            1.7858270956248112 8.842327825487091 1.2985637176857003 0.0 1.7999139822007393
            1.2550021667288358 0.5953620552102069 2.977365311828157 2.3507472077390013
            1.1911115214127102 2.1977227406902666 1.179551896375789
            """
        ),
        "rouge_l": floats(
            """
            0.5555555555555556 0.9104477611940297 0.42857142857142855 0.0 0.5366568914956013
            0.34014869888475835 0.20198675496688742 0.625 0.5532879818594103 0.5236051502145923
            0.2785388127853881 0.42558139534883715
            """
        ),
        "bleu_4": floats(
            """
            7.583235671536399e-09 0.8464817245484947 7.730551754367208e-09 1.857505799560655e-16
            1.0294994182935423e-08 4.939382736523921e-09 1.2274570254139038e-08
            5.4663255680950514e-05 4.032989116198e-05 1.1362193661029629e-08 8.748468734740506e-09
            5.3077121704368895e-09
            """
        ),
    },
    "own_empty_candidate": {
        "score": floats(
            """
            1.2594071443257384 0.5323789875061593 0.6230406263948198 0.47785034707225355
            0.3989796269250969 0.34080171939441684
            """
        ),
        "counts": [16, 8, 5, 3, 20, 17, 14, 11, 20, 25],
        "cider_d": floats(
            """
            0.0 2.672390992887384 0.9296761213783351 1.4355614630372346
            """
        ),
        "rouge_l": floats(
            """
            0.0 0.9104477611940297 0.42857142857142855 0.7904967602591793
            """
        ),
        "bleu_4": floats(
            """
            0.0 0.9999999995958335 8.307018471648734e-09 6.14788152834528e-05
            """
        ),
    },
}


def own(name="own_small_v1"):
    rows = [line.split(" | ") for line in OWN.replace("\n    ", " ").strip().split("\n")]
    preds, target = [row[0] for row in rows], [row[1:] for row in rows]
    if name == "own_small_v1_single_ref":
        target = [refs[:1] for refs in target]
    if name == "own_empty_candidate":
        preds, target = ["", *preds[1:4]], target[:4]
    return preds, target


def real(shared, entry):
    """The captions of one of caption_scores.json's sets, rebuilt as its `source` says."""
    name = entry["name"]
    if "candidates" in entry:
        return entry["candidates"], entry["references"]
    if name == "coco_val2014_fakecap":
        rows = json.loads((shared / "vectors/coco_fakecap.json").read_text())
        return [row["candidate"] for row in rows], [row["references"] for row in rows]
    clips, rot = {}, int(name[-1])
    if name.startswith("audiocaps"):
        for row in rows_of(shared / "data/audiocaps/test.csv"):
            clips.setdefault(row["youtube_id"], []).append(row["caption"])
    else:
        for row in rows_of(shared / "data/clotho/clotho_captions_evaluation.csv"):
            clips[row["file_name"]] = [row[f"caption_{i}"] for i in range(1, 6)]
    return [c[rot] for c in clips.values()], [c[:rot] + c[rot + 1 :] for c in clips.values()]


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def entries(shared):
    return json.loads((shared / "vectors/caption_scores.json").read_text())["sets"]


def all_scores(preds, target):
    counts = bleu_counts(preds, target)
    return [
        cider_d(preds, target).mean().item(),
        rouge_l(preds, target).mean().item(),
        *bleu(counts.sum(0)).tolist(),
    ], counts


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# --- values ---


@pytest.mark.parametrize("name", SCORES)
def test_own_sets(name):
    preds, target = own(name)
    want = SCORES[name]
    scores, counts = all_scores(preds, target)
    assert scores == pytest.approx(want["score"], abs=1e-9)
    assert counts.sum(0).tolist() == want["counts"]
    for got, key in (
        (cider_d(preds, target), "cider_d"),
        (rouge_l(preds, target), "rouge_l"),
        (bleu(counts)[:, 3], "bleu_4"),
    ):
        assert got.dtype == torch.float64 and got.shape == (len(preds),)
        torch.testing.assert_close(got, double(want[key]), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_reference_scores(shared):
    seen = 0
    for entry in entries(shared):
        preds, target = real(shared, entry)
        assert len(preds) == entry["n"]
        want, (scores, counts) = entry["coco_caption"], all_scores(preds, target)
        keys = ["cider_d", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"]
        assert scores == pytest.approx([want[key] for key in keys], abs=1e-9), entry["name"]
        c = want["bleu_counts"]
        assert counts.sum(0).tolist() == [*c["correct"], *c["guess"], c["testlen"], c["reflen"]]
        if "per_item" in want:
            got = {
                "cider_d": cider_d(preds, target),
                "rouge_l": rouge_l(preds, target),
                "bleu_4": bleu(counts)[:, 3],
            }
            for key, values in got.items():
                each = double(want["per_item"][key])
                torch.testing.assert_close(values, each, rtol=0, atol=1e-9)
        for key, value in entry.get("published", {}).items():
            if key in keys:
                assert round(want[key], 3) == value
        seen += 1
    assert seen == 7


def plain_cider_d(preds, target):
    """Vedantam et al.'s formulas with dictionaries, caption by caption."""

    def vector(text):
        words = ptb_tokenize(text)
        return [
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, 5)
        ]

    documents = Counter()
    for refs in target:
        documents.update({gram for ref in refs for grams in vector(ref) for gram in grams})

    def weigh(text):
        return [
            {
                gram: count * (math.log(len(preds)) - math.log(max(1, documents[gram])))
                for gram, count in grams.items()
            }
            for grams in vector(text)
        ]

    scores = []
    for pred, refs in zip(preds, target):
        a, total = weigh(pred), 0
        for ref in refs:
            b = weigh(ref)
            far = sum(vector(pred)[1].values()) - sum(vector(ref)[1].values())
            for u, v in zip(a, b):
                norm = math.sqrt(sum(x * x for x in u.values()) * sum(x * x for x in v.values()))
                dot = sum(min(x, v.get(g, 0)) * v.get(g, 0) for g, x in u.items())
                total += dot / norm * math.exp(-(far**2) / 72) if norm else 0
        scores.append(10 * total / 4 / len(refs))
    return scores


def babble(rng, n, most=12):
    """n predictions and their references, of few words, so that some agree."""
    vocabulary = ["rain", "dog", "bark", "loud", "car", "wind", "and", "a", "the", "near"]

    def text():
        return " ".join(rng.choices(vocabulary, k=rng.randint(0, most)))

    preds = [text() for _ in range(n)]
    return preds, [[text() for _ in range(rng.randint(1, 5))] for _ in range(n)]


@pytest.mark.parametrize("seed", range(6))
def test_cider_d_is_its_formula(seed):
    preds, target = babble(
        random.Random(seed), [1, 2, 3, 9, 20, 40][seed], most=[12, 12, 3, 12, 30, 1][seed]
    )
    assert cider_d(preds, target).tolist() == pytest.approx(plain_cider_d(preds, target), abs=1e-12)


def plain_rouge_l(pred, refs):
    def common(a, b):
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = (
                    table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
                )
        return table[-1][-1]

    pred, refs = ptb_tokenize(pred), [ptb_tokenize(ref) for ref in refs]
    p = max(common(pred, ref) / max(len(pred), 1) for ref in refs)
    r = max(common(pred, ref) / max(len(ref), 1) for ref in refs)
    return 2.44 * p * r / (r + 1.44 * p) if p * r else 0


def test_rouge_l_is_its_formula():
    preds, target = babble(random.Random(0), 40, most=90)  # longer than a machine word, too
    assert rouge_l(preds, target).tolist() == pytest.approx(
        [plain_rouge_l(*x) for x in zip(preds, target)], abs=1e-12
    )


def test_bleu_against_torchmetrics():
    preds, target = babble(random.Random(1), 60)
    preds[::2] = [refs[-1] + " loud car" for refs in target[::2]]
    joined = [" ".join(ptb_tokenize(pred)) for pred in preds]
    refs = [
        sorted((" ".join(ptb_tokenize(ref)) for ref in refs), key=lambda ref: len(ref.split()))
        for refs in target
    ]
    mine = bleu(bleu_counts(preds, target).sum(0))
    for n in range(1, 5):
        assert bleu_score(joined, refs, n_gram=n).item() == pytest.approx(
            mine[n - 1].item(), abs=1e-6
        )


def test_bleu_of_a_resampled_set_needs_no_counting_anew():
    preds, target = own()
    draw = torch.randint(12, (5, 12), generator=torch.Generator().manual_seed(0))
    weights = torch.stack([row.bincount(minlength=12) for row in draw]).double()
    got = bleu(weights @ bleu_counts(preds, target))  # (5, 4)
    for row, scores in zip(draw, got):
        again = bleu(bleu_counts([preds[i] for i in row], [target[i] for i in row]).sum(0))
        torch.testing.assert_close(scores, again, rtol=0, atol=1e-12)


def test_a_caption_against_itself():
    preds, target = own()
    target = [[pred] for pred in preds]
    long = torch.tensor([len(ptb_tokenize(pred)) >= 4 for pred in preds])
    torch.testing.assert_close(cider_d(preds, target)[long], double([10.0] * int(long.sum())))
    assert rouge_l(preds, target).tolist() == pytest.approx([1.0] * 12)
    assert bleu(bleu_counts(preds, target).sum(0)).tolist() == pytest.approx([1.0] * 4)


# --- bad and strange input ---


def test_empty_and_strange_predictions():
    preds, target = own()
    for odd in (
        "",
        "   ",
        "...",
        "日本語の文章です",
        "word " * 1000,
        "😀",
        "\ud800",
        "a\nb\u2028c\0",
        '"image_id"',
    ):
        scores, counts = all_scores([odd, *preds[1:]], target)
        assert all(math.isfinite(s) for s in scores) and counts.isfinite().all()
        assert (
            cider_d([odd, *preds[1:]], target)[0] == rouge_l([odd, *preds[1:]], target)[0] == 0
            or odd[0] == "a"
        )
        metric = CiderD()
        metric.update([odd, *preds[1:]], target)
        assert metric.compute().item() == pytest.approx(scores[0], abs=1e-12)
    nothing = all_scores([""] * 3, [["", "..."], [""], ["a dog"]])[0]
    assert nothing == pytest.approx([0] * 6)
    assert all_scores(preds, [[*refs, ""] for refs in target])[0][1:] == pytest.approx(
        all_scores(preds, target)[0][1:]
    )
    assert len(cider_d([], [])) == len(rouge_l([], [])) == len(bleu_counts([], [])) == 0


@pytest.mark.parametrize(
    "preds, target, message",
    [
        (["a", "b"], [["a"]], "2 predictions but 1 lists"),
        (["a", "b"], [["a"], []], "item 1: the list of references is empty: leave the item out"),
        (["a", "b"], [["a"], "b"], r"item 1: the references are 'b', not a list of str: put \[\]"),
        (["a"], [None], "item 0: the references are None"),
        (["a"], [["a", None]], "item 0: the reference None is not a str"),
        (["a", None], [["a"], ["b"]], "prediction 1 is None, not a str: give ''"),
        ("a", ["a"], "not a single str"),
        (["a"], "a", "not a single str"),
    ],
)
def test_bad_input_says_which_item(preds, target, message):
    for function in (cider_d, rouge_l, bleu_counts, CiderD().update):
        with pytest.raises(ValueError, match=message):
            function(preds, target)


def test_nothing_to_score():
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="call update first"):
        CiderD().compute()
    metric = CiderD()
    metric.update([], [])
    with pytest.raises(ValueError, match="call update first"):
        metric.compute()


# --- Metric ---


def test_batches_are_one_set():
    preds, target = own()
    whole = cider_d(preds, target).mean().item()
    for size in (1, 5, 12):
        metric = CiderD()
        for i in range(0, 12, size):
            metric.update(preds[i : i + size], tuple(target[i : i + size]))
        assert metric.compute().dtype == torch.float64 and metric.compute().shape == ()
        assert metric.compute().item() == pytest.approx(whole, abs=1e-12)
    metric.reset()
    batch = metric(preds[:5], target[:5])  # forward: this batch's own score
    assert batch.item() == pytest.approx(cider_d(preds[:5], target[:5]).mean().item(), abs=1e-12)
    metric(preds[5:], target[5:])
    assert metric.compute().item() == pytest.approx(whole, abs=1e-12)
    other, part = CiderD(), CiderD()
    other.update(preds[:5], target[:5])
    part.update(preds[5:], target[5:])
    part.merge_state(other)
    assert part.compute().item() == pytest.approx(whole, abs=1e-12)


def test_pickled_cloned_and_collected():
    preds, target = own()
    metric = CiderD()
    metric.update(preds[:5], target[:5])
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        copy.update(preds[5:], target[5:])
        assert copy.compute().item() == pytest.approx(SCORES["own_small_v1"]["score"][0], abs=1e-9)
    metric.update(preds[5:], target[5:])
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()
    both = MetricCollection({"a": CiderD(), "b": CiderD()})  # torchmetrics keeps equal states once
    for start, end in ((0, 5), (5, 9), (9, 12)):
        both.update(preds[start:end], target[start:end])
    assert len(both.compute_groups) == 1
    assert {k: v.item() for k, v in both.compute().items()} == pytest.approx(
        dict.fromkeys("ab", metric.compute().item())
    )


def rank_main(rank, folder):
    """One of two Gloo processes: splits of the captions over the ranks, also with none for one."""
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    preds, target = own()
    scores, kept = [], []
    for first in (7, 1, 12, 0):  # of the 12 items, how many the first process has
        mine = slice(first) if rank == 0 else slice(first, 12)
        metric = CiderD()
        collection = MetricCollection({"cider_d": CiderD(), "again": CiderD()})
        for pred, refs in zip(preds[mine], target[mine]):
            metric.update([pred], [refs])
            collection.update([pred], [refs])
        scores += [metric.compute().item(), collection.compute()["cider_d"].item()]
        if rank == 1:  # after compute, the rank has its own captions again
            metric.update(["x"], [["x"]])
            kept.append(len(metric.captions()[0]))
    Path(folder, f"{rank}.json").write_text(json.dumps([scores, kept]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no Gloo"
)
def test_two_processes_score_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        scores, kept = json.loads((tmp_path / f"{rank}.json").read_text())
        assert scores == pytest.approx([SCORES["own_small_v1"]["score"][0]] * 8, abs=1e-9)
        assert kept == ([] if rank == 0 else [6, 12, 1, 13])


def test_audiocaps_takes_little_longer_than_its_tokens(shared):
    entry = next(e for e in entries(shared) if e["name"] == "audiocaps_test_rot0")
    preds, target = real(shared, entry)
    started = time.process_time()
    for text in [*preds, *(ref for refs in target for ref in refs)]:
        ptb_tokenize(text)
    tokens = time.process_time() - started
    ptb.cached_tokens.cache_clear()
    started = time.process_time()
    metric = CiderD()
    for i in range(0, 975, 64):
        metric.update(preds[i : i + 64], target[i : i + 64])
    assert metric.compute().item() == pytest.approx(entry["coco_caption"]["cider_d"], abs=1e-9)
    all_scores(preds, target)
    assert time.process_time() - started < 20 * tokens  # about 3 times as long
