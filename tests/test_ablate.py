import json

import pytest
import torch
from conftest import make_samples, options, results_of, write_samples

from disk import DataError
from experiments import ablate


def argv(project, *names):
    return [*options(project)[:4], *names]


@pytest.mark.slow
def test_ablations(project, evaluated, capsys):
    ablate.main(argv(project, "tau=0.05,1", "M=10,20,400", "K=2", "figure3"))
    assert "M=400 is left out: 40 texts" in capsys.readouterr().out
    folder = evaluated / "ablate"
    tau, m = (json.loads((folder / f"{name}.json").read_text())["rows"] for name in ("tau", "M"))
    assert list(tau) == ["0.1", "0.05", "1"] and list(m) == ["40", "10", "20"]
    santa = results_of(evaluated)["columns"]["santa"]["sound"]["ACC"]["value"]
    assert tau["0.1"]["sound"]["value"] == santa
    assert "p" in tau["1"]["yesno"]["against the first"]
    assert "0.735" in (folder / "tau.md").read_text()  # the paper's, beside
    assert all((folder / f"{n}.png").stat().st_size > 5000 for n in ("tau", "M", "K", "figure3"))
    panels = json.loads((folder / "figure3.json").read_text())
    assert panels["pairs"] == 19 // 2 + 1
    assert list(panels["panels"]) == ["CLAP", "CLAP + noise", "memory", "Santa"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tau=0", "0 is no value"),
        ("L=2.5", "2.5 is no value"),
        ("lambda=2", "2 is no value"),
        ("taste", "there are table4"),
        ("tau=high", "expected numbers"),
        ("sigma", "state.pt is missing"),
    ],
)
def test_bad_requests_are_named(project, name, message):
    with pytest.raises(DataError, match=message):
        ablate.main(argv(project, name))


def test_damaged_files_are_named(project, evaluated, tmp_path):
    state = project / "run/state.pt"
    try:
        for content in (b"", b"half", None):
            state.write_bytes(content or b"")
            if content is None:
                torch.save({"identity": {"variance": 0.1}}, state)
            with pytest.raises(DataError, match="state.pt: .*train the model again: --fresh"):
                ablate.main(argv(project, "sigma"))
    finally:
        state.unlink()
    texts = write_samples(tmp_path / "texts", make_samples(4), vectors=False)
    with pytest.raises(DataError, match="--memory: .*texts has no vectors; first: python -m"):
        ablate.main(argv(project, "M=2", "--memory", str(texts)))


def test_a_smaller_batch_for_more_processes():
    fields = {"batch_size": 32, "micro_batch": 32}
    assert [ablate.shared_batch(fields, n) for n in (1, 2, 4)] == [32, 16, 8]
    with pytest.raises(DataError, match="cannot be shared by 3"):
        ablate.shared_batch(fields, 3)
