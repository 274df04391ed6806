import io
import json
import re
import tarfile
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import make_samples, write_samples

import data
from data import Batches, Plan, Source, Visit, find_sources, loader, read_shard
from disk import DataError
from language.prompt import Template
from shards.writer import ShardWriter


@pytest.fixture
def root(tmp_path):
    write_samples(tmp_path / "farm", make_samples(70, "farm"), per_shard=20)
    write_samples(tmp_path / "zoo", make_samples(45, "zoo", seed=1), per_shard=15)
    return tmp_path


def plan_of(root, batch=8, **kwargs):
    return Plan(*find_sources(root), batch, **kwargs)


def ids_of(batches, n):
    """What the first n batches hold, readable: (m, source, token rows)."""
    return [(b["m"], b["source"], b["ids"].tolist()) for b in islice(batches, n)]


# --- writing and reading ---


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "dance"}, "dance"),
        ({"answer": 3}, "answer"),
        ({"answer": []}, "answer"),
        ({"task": "mcq"}, "choices"),
        ({"text": 1}, "text"),
    ],
)
def test_schema(tmp_path, change, message):
    with pytest.raises(DataError, match=message), ShardWriter(tmp_path) as writer:
        writer.write({**next(make_samples(1)), **change})
    with pytest.raises(DataError, match="lacks source"), ShardWriter(tmp_path) as writer:
        writer.write({k: v for k, v in next(make_samples(1)).items() if k != "source"})


def break_member(path, number, payload, kind=".json"):
    """Rewrites a tar with the number-th file of this kind replaced."""
    with tarfile.open(path) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar.getmembers()]
    ours = [i for i, (m, _) in enumerate(members) if m.name.endswith(kind)]
    member, _ = members[ours[number]]
    member.size = len(payload)
    members[ours[number]] = member, payload
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))


def test_broken_member_is_named_and_skipped(root):
    path = root / "farm" / "000001.tar"
    break_member(path, 3, b'{"text": "half')
    broken = []
    assert len(list(read_shard(str(path), 20, broken=broken))) == 19
    assert len(broken) == 1 and "000001.tar" in broken[0] and "0000010000000" in broken[0]
    with pytest.raises(DataError, match="000001.tar"):
        list(read_shard(str(path), 20, strict=True))


def test_truncated_shard_is_named_and_batches_go_on(root, tokenizer):
    path = root / "farm" / "000000.tar"
    path.write_bytes(path.read_bytes()[:9000])
    broken = []
    assert 0 < len(list(read_shard(str(path), 20, broken=broken))) < 20
    assert any("index.json says 20" in b for b in broken)
    (root / "zoo" / "000002.tar").write_bytes(
        b"not a tar at all"
    )  # nothing readable: the next shard takes its place
    plan = plan_of(root, lanes=2)
    batches = list(islice(Batches(plan, Template("{audio}{instruction}", tokenizer)), 60))
    assert all(len(b["ids"]) == 8 for b in batches)
    said = " ".join(w for b in batches for w in b["broken"])
    assert "farm/000000.tar" in said and "zoo/000002.tar" in said
    with pytest.raises(DataError):
        list(islice(Batches(plan, Template("{audio}{instruction}", tokenizer), strict=True), 60))


def test_nothing_readable_is_an_error_that_names_the_source(tmp_path, tokenizer):
    write_samples(tmp_path / "s", make_samples(10))
    (tmp_path / "s" / "000000.tar").unlink()
    with pytest.raises(DataError, match="no usable sample.*000000.tar"):
        next(iter(Batches(plan_of(tmp_path), Template("{audio}{instruction}", tokenizer))))


SAMPLE = dict(text="rain", instruction="?", answer="rain", task="cap", source="mine", id="1")


@pytest.mark.parametrize(
    "odd, message",
    [
        (["a"], "not \\['a'\\]"),
        (None, "not None"),
        (5, "not 5"),
        (SAMPLE | {"tag": ["dog"]}, "tag"),
        (SAMPLE | {"source": ["x"]}, "source"),
        (SAMPLE | {"source": ""}, "source"),
        (SAMPLE | {"id": 1.5}, "id"),
        (SAMPLE | {"id": True}, "id"),
        (SAMPLE | {"task": ["cap"]}, "task"),
        (SAMPLE | {"text": " "}, "text"),
        (SAMPLE | {"text": "nan"}, "text"),
        (SAMPLE | {"answer": ["rain", ""]}, "answer"),
        (SAMPLE | {"answer": {"a": 1}}, "answer"),
        (SAMPLE | {"choices": "rain"}, "choices"),
        (SAMPLE | {"task": "mcq", "choices": ["snow", "hail"]}, "among its choices"),
        (SAMPLE | {"text": "a bird \ud83d sings"}, "surrogate"),
        (SAMPLE | {"skill": ["\ud83d"]}, "surrogate"),
    ],
)
def test_odd_json_is_named_and_left_out(root, odd, message):
    path = root / "farm" / "000001.tar"
    break_member(path, 3, json.dumps(odd).encode())
    broken = []
    assert len(list(read_shard(str(path), 20, broken=broken))) == 19
    assert len(broken) == 1
    assert re.search(f"000001.tar, member .*0000010000000.*{message}", broken[0])


def test_a_withheld_answer_and_other_fields_are_read(root):
    path, odd = root / "farm" / "000001.tar", SAMPLE | {"task": "mcq", "choices": ["a", "b"]}
    own = {"answer": "", "id": 7, "vector": [1], "audio": "x.wav", "mood": ["calm"]}
    break_member(path, 3, json.dumps(odd | own).encode())
    sample = list(read_shard(str(path), 20, strict=True))[3]
    assert sample["id"] == 7 and sample["mood"] == ["calm"]
    assert len(sample["vector"]) > 1 and "audio" not in sample  # these names are the reader's own


def test_two_tars_joined_by_cat_are_named(root):
    """With tar's own padding, and with none behind the first archive's end."""
    a, b = ((root / "farm" / f"00000{i}.tar").read_bytes() for i in (0, 1))
    for end in (bytes(10240), b""):
        (root / "both.tar").write_bytes(a + end + b)
        broken = []
        assert len(list(read_shard(str(root / "both.tar"), broken=broken))) == 20
        assert len(broken) == 1 and "both.tar: goes on" in broken[0]
    broken = []
    list(read_shard(str(root / "farm" / "000000.tar"), broken=broken))
    assert not broken


def test_what_follows_a_damaged_header_is_named(root):
    path = root / "farm" / "000000.tar"
    with tarfile.open(path) as tar:
        header = tar.getmembers()[5].offset
    content = bytearray(path.read_bytes())
    content[header : header + 8] = b"\xff" * 8
    path.write_bytes(content)
    broken = []
    assert len(list(read_shard(str(path), broken=broken))) == 3  # two members each
    assert len(broken) == 1 and "goes on" in broken[0]


def test_compressed_tars_and_companions_of_macos_are_read(root):
    path = root / "farm" / "000000.tar"
    want = [(sample["key"], sample["id"]) for sample in read_shard(str(path))]
    with tarfile.open(path) as tar, tarfile.open(root / "x.tar.gz", "w:gz") as packed:
        for member in tar:
            for name in (f"__MACOSX/._{member.name}", f"._{member.name}", member.name):
                content = b"junk" if "._" in name else tar.extractfile(member).read()
                info = tarfile.TarInfo(name)
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))
    broken = []
    found = read_shard(str(root / "x.tar.gz"), 20, broken=broken)
    assert [(sample["key"], sample["id"]) for sample in found] == want and not broken


@pytest.mark.parametrize("name", ["a b", "a:b", "a{0..1}", "a::b", "a?b*[c]", "http:", "später"])
def test_a_path_that_exists_is_a_path(tmp_path, name):
    write_samples(tmp_path / name / "s", make_samples(3))
    (source,), _ = find_sources(tmp_path / name)
    assert len(list(data.read_source(source, strict=True))) == 3


@pytest.mark.parametrize(
    "index",
    [
        {"__kind__": "wids-shard-index-v1", "shardlist": [{"url": "0.tar", "nsamples": 4}]},
        ["0.tar"],
        {"shards": ["0.tar"], "hash": "x"},
        {"shards": [{"file": "0.tar", "n": "4"}], "hash": "x"},
        {"shards": [{"file": "0.tar", "n": 4}]},
        {"shards": [{"file": "0.tar", "n": 4}], "hash": "x", "vectors": {"dim": 4}},
    ],
)
def test_another_programs_index_is_named(tmp_path, index):
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="index.json .*move it away.*shards.embed index"):
        Source(tmp_path)


def test_vectors_are_checked(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4, 16))
    vectors[1, 3], vectors[2] = np.nan, 0
    info = {"dim": 16, "side": "text", "clap": "x"}
    with ShardWriter(tmp_path / "s", vectors=info) as writer:
        for sample in make_samples(4):
            writer.write(sample, vector=rng.normal(size=16))
    path = tmp_path / "s" / "000000.tar"
    for number, vector in ((0, vectors[1]), (1, vectors[2]), (2, vectors[0][:8])):
        npy = io.BytesIO()
        np.save(npy, vector.astype(np.float16))
        break_member(path, number, npy.getvalue(), ".npy")
    broken = []
    assert len(list(data.read_source(Source(tmp_path / "s"), broken=broken))) == 1
    assert len(broken) == 3 and all("vector" in problem for problem in broken)
    assert "8 numbers; index.json says 16" in broken[2]


def test_what_is_broken_is_named_once_however_often_a_run_is_resumed(root, tokenizer):
    for name in ("farm/000001.tar", "zoo/000002.tar"):
        break_member(root / name, 3, b'{"text": "half')
    template = Template("{audio}{instruction}", tokenizer)

    def named(start, n):
        batches = islice(Batches(plan_of(root, lanes=3), template, start), n)
        return [problem for batch in batches for problem in batch["broken"]]

    whole = named(0, 60)
    assert len(whole) > 4
    for at in (1, 7, 8, 23):
        assert named(0, at) + named(at, 60 - at) == whole


def test_the_rows_that_fill_up_a_visit_differ(root):
    """20 rows make 3 batches of 8: four rows come twice, others in every visit."""
    plan, twice = plan_of(root), Counter()
    for number in range(40):
        counts = Counter(plan.cut(Visit(number, 0, 0, 3), [10] * 20).ravel().tolist())
        assert set(counts.values()) == {1, 2}
        twice.update(row for row, count in counts.items() if count == 2)
    assert set(twice) == set(range(20)) and max(twice.values()) < 20


def test_pipe_url(root):
    samples = list(read_shard(f"pipe:cat {root}/farm/000000.tar", 20, strict=True))
    assert len(samples) == 20 and samples[0]["source"] == "farm"


# --- the plan ---


def test_every_sample_once_an_epoch(root):
    plan = plan_of(root, lanes=1)
    rows, shards = Counter(), plan.sources[0].shards
    for visit in islice(plan.visits(), 7):  # 4 + 3 shards: one epoch, since weights are sizes
        n = plan.sources[visit.source].shards[visit.shard]["n"]
        cut = plan.cut(visit, [10] * n)
        assert cut.shape == (visit.batches, 8) and set(cut.ravel()) == set(range(n))
        rows[visit.source, visit.shard] += 1
    assert rows == {(0, i): 1 for i in range(len(shards))} | {(1, i): 1 for i in range(3)}


def test_mixture_weights_are_kept(root):
    sources, weights = find_sources(root, {"farm": 300, "zoo": 100})
    seen = Counter(
        plan.sources[visit.source].name
        for plan in [Plan(sources, weights, 8)]
        for _, visit, _ in islice(plan.batches(), 4000)
    )
    assert abs(seen["farm"] / 4000 - 0.75) < 0.01
    with pytest.raises(DataError):
        Plan(sources, [0, 0], 8)


@pytest.mark.slow
def test_same_batches_whatever_the_ranks_and_workers(root, tokenizer):
    template = Template("{audio}{instruction}", tokenizer)
    whole = ids_of(Batches(plan_of(root), template), 48)
    for ranks, workers in ((2, 0), (3, 2), (1, 3)):
        parts = [
            ids_of(
                loader(Batches(plan_of(root), template, rank=r, ranks=ranks), workers), 48 // ranks
            )
            for r in range(ranks)
        ]
        assert sorted(sum(parts, [])) == whole
        assert [m for m, *_ in parts[-1]] == list(range(ranks - 1, 48, ranks))


def test_resumed_batches_are_the_uninterrupted_ones(root, tokenizer):
    template = Template("{audio}{instruction}", tokenizer)
    whole = ids_of(Batches(plan_of(root), template), 60)
    assert ids_of(loader(Batches(plan_of(root), template, start=31), 2), 29) == whole[31:]
    assert ids_of(Batches(plan_of(root, seed=1), template), 60) != whole


def test_resuming_reads_at_most_one_shard_a_lane(root, tokenizer, monkeypatch):
    opened = []
    real = data.read_shard
    monkeypatch.setattr(
        data, "read_shard", lambda url, *a, **k: opened.append(url) or real(url, *a, **k)
    )
    plan = plan_of(root, lanes=2)
    list(islice(Batches(plan, Template("{audio}{instruction}", tokenizer), start=501), 2))
    assert len(opened) <= 2


def test_batches_are_of_similar_length():
    lengths = np.random.default_rng(0).integers(10, 60, 2000)
    plan = Plan([type("S", (), {"shards": [{"n": 2000}], "__len__": lambda self: 2000})()], [1], 32)
    cut = plan.cut(Visit(0, 0, 0, 63), lengths)
    padded = lengths[cut].max(axis=1).sum() * 32 / lengths[cut].sum()
    shuffled = lengths[
        cut.ravel()[np.random.default_rng(1).permutation(cut.size)].reshape(cut.shape)
    ]
    assert padded < 1.12 < 1.5 < shuffled.max(axis=1).sum() * 32 / shuffled.sum()
    assert (plan.cut(Visit(1, 0, 0, 63), lengths) != cut).any()  # another visit, other batches


@pytest.mark.slow
def test_together_processes_side_by_side_get_like_lengths_of_one_source(tmp_path, tokenizer):
    for name, words in (("short", 2), ("long", 30)):
        rng = np.random.default_rng(words)
        write_samples(
            tmp_path / name,
            [
                {**s, "answer": "dog " * int(rng.integers(1, words + 1))}
                for s in make_samples(150, name)
            ],
            per_shard=75,
        )
    template = Template("{audio}{instruction}", tokenizer)

    def rows(together):
        batches = list(
            islice(Batches(plan_of(tmp_path, batch=4, lanes=3, together=together), template), 160)
        )
        return [batches[i : i + 4] for i in range(0, 160, 4)]  # four processes' micro-batches

    def waits(updates):
        lengths = np.array([[batch["ids"].shape[1] for batch in update] for update in updates])
        return np.mean(lengths.max(1) / lengths.mean(1))

    assert all(len({b["source"] for b in u}) == 1 for u in rows(4)) and any(
        len({b["source"] for b in u}) > 1 for u in rows(1)
    )
    assert waits(rows(4)) < 1.1 < 1.3 < waits(rows(1))
    plan = plan_of(tmp_path, batch=4, lanes=1, together=4)
    seen = Counter()
    # 75 samples in 5 runs of 4 batches of 4; one epoch is 2 x 2 shards
    for visit in islice(plan.visits(), 4):
        cut = plan.cut(visit, range(75))
        assert cut.shape == (20, 4) and set(cut.ravel()) == set(range(75))
        seen[visit.source, visit.shard] += 1
    assert seen == {(s, shard): 1 for s in range(2) for shard in range(2)}
    whole = ids_of(Batches(plan_of(tmp_path, batch=4, together=4), template), 48)
    parts = [
        ids_of(
            loader(Batches(plan_of(tmp_path, batch=4, together=4), template, rank=r, ranks=3), 2),
            16,
        )
        for r in range(3)
    ]
    assert sorted(sum(parts, [])) == whole
    assert (
        ids_of(Batches(plan_of(tmp_path, batch=4, together=4), template, start=17), 31)
        == whole[17:]
    )


# --- tokens ---


def test_template_puts_the_answer_where_it_belongs(tokenizer):
    template = Template("USER: {audio} {tag} {instruction}\nASSISTANT:", tokenizer, max_answer=5)
    sample = {**next(make_samples(1)), "tag": "[farm]"}
    ((ids, n),) = template.encode([sample])
    assert tokenizer.decode(ids[:n]) == "USER:  [farm] Generate audio caption.\nASSISTANT:"
    assert (
        tokenizer.decode(ids[len(template.head) : n])
        == " [farm] Generate audio caption.\nASSISTANT:"
    )
    assert ids[-1] == tokenizer.eos_token_id and len(ids) - n == 6  # 5 of the answer and the end
    assert (" " + sample["answer"]).startswith(tokenizer.decode(ids[n:-1]))
    assert (
        template.prompts(["Hi"])[0] == tokenizer(" Hi\nASSISTANT:")["input_ids"]
    )  # no tag, no gap
    batch = data.collate([sample, sample], template.encode([sample]) * 2, pad=0)
    assert batch["ids"].shape[1] % 8 == 0
    assert batch["ids"].flatten()[batch["answer"]].tolist() == 2 * ids[n:]
    for wrong in ("{instruction}", "{audio}", "{instruction}{audio}"):
        with pytest.raises(ValueError, match="template"):
            Template(wrong, tokenizer)


def test_other_samples_fill_up_another_visit():
    """Ten rows in two batches of 8: six of them twice, drawn anew for each visit."""
    plan = Plan([None], [1], 8)
    twice = set()
    for number in range(5):
        rows, count = np.unique(plan.cut(Visit(number, 0, 0, 2), [5] * 10), return_counts=True)
        assert len(rows) == 10 and (count == 2).sum() == 6
        twice.add(tuple(rows[count == 2]))
    assert len(twice) > 1


def test_each_epoch_has_an_order_of_its_own(root):
    shards = [visit.shard for visit in islice(Plan([Source(root / "farm")], [1], 8).visits(), 24)]
    epochs = [tuple(shards[i : i + 4]) for i in range(0, 24, 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs) and len(set(epochs)) > 1


def test_each_clip_is_cropped_with_a_seed_of_its_own(tmp_path, tokenizer):
    with ShardWriter(tmp_path) as writer:
        for sample in make_samples(20):
            writer.write(sample, audio=("flac", b"sound"))
    seeds = []

    def decode(data, seed):
        seeds.append(seed)
        return torch.zeros(4)

    plan = Plan([Source(tmp_path)], [1], 8)
    batches = Batches(plan, Template("{audio}{instruction}", tokenizer), decode=decode)
    assert [batch["audio"].shape for batch in islice(batches, 5)] == 5 * [(8, 4)]
    assert len(set(seeds)) == len(seeds) == 40


@pytest.mark.parametrize("n", [19, 21])
def test_a_shard_with_another_number_of_samples_is_named(root, n):
    broken = []
    list(read_shard(str(root / "farm" / "000000.tar"), n, broken=broken))
    assert [problem.split(".tar: ")[1] for problem in broken] == [
        f"holds 20 samples where index.json says {n}"
    ]
