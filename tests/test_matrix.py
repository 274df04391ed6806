"""Language models of every family, small and random: each works, or is refused in one line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from disk import DataError
from experiments.matrix.__main__ import COLUMNS, expected, main
from experiments.matrix.checks import CHECKS, FAST, batch_of, build, problems
from experiments.matrix.families import FAMILIES
from mats import MATS

OFTEN = {  # tried in every run of the tests
    "gpt2", "gpt_neox", "opt", "falcon", "llama", "mistral", "mixtral", "qwen2", "qwen3",
    "qwen3_moe", "gemma", "gemma2", "gemma3_text", "gemma3", "phi3", "smollm3", "olmo2", "granite",
    "cohere", "glm4", "gpt_oss",
}  # fmt: skip
WORK = [family for family in FAMILIES if not family.refused]
REFUSED = [family for family in FAMILIES if family.refused]
BY_TYPE = {family.type: family for family in reversed(FAMILIES)}


@pytest.fixture(scope="module")
def case_of(tmp_path_factory):
    """A function (family) -> its Case. Each is built once."""
    cases, root = {}, tmp_path_factory.mktemp("matrix")

    def get(family):
        if family.name not in cases:
            cases[family.name] = build(family, root / str(len(cases)))
        return cases[family.name]

    return get


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=() if family.type in OFTEN else pytest.mark.slow)
        for family in WORK
    ],
)
def test_the_loss_is_that_of_full_logits_and_mapper_and_lora_learn(family, case_of):
    """loss, gradients and dropout of experiments/matrix/checks.py."""
    assert problems(case_of(family), FAST) == {}


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param(family, id=family.name) for family in WORK])
def test_answers_do_not_depend_on_their_batch_nor_on_a_file_between(family, case_of):
    """batches, training, files and adapter of experiments/matrix/checks.py."""
    assert problems(case_of(family), set(CHECKS) - set(FAST)) == {}


@pytest.mark.parametrize("family", [pytest.param(family, id=family.name) for family in REFUSED])
def test_a_model_that_cannot_work_is_refused_when_it_is_built(family, tmp_path):
    with pytest.raises(DataError, match=family.refused) as error:
        build(family, tmp_path)
    said = str(error.value)
    assert "\n" not in said and str(tmp_path / "llm") in said and len(said) < 500


def test_a_wrapper_has_room_for_as_much_as_its_text_model(case_of):
    case = case_of(BY_TYPE["gemma3"])
    assert case.model.room == 256 - case.model.config.prefix


def test_a_decoder_of_32_bits_meets_a_head_of_16(tmp_path):
    """Mamba adds its layers up in float32."""
    model = build(BY_TYPE["mamba"], tmp_path, llm_dtype="bfloat16").model
    assert model(*batch_of(model)).isfinite()


# --- the checks find the faults that they are for ---


def ignore_window(case, patch):
    patch.setattr(case.model, "maskless", True)


def train_a_frozen_weight(case, patch):
    patch.setattr(case.model.embed.weight, "requires_grad", True)


def leave_a_layer_out(case, patch):
    layer = next(m for n, m in case.model.named_modules() if n.endswith("lora_B.default"))
    patch.setattr(layer, "forward", lambda x: layer.weight.detach().sum() * 0 * x[..., :1])


def let_it_drop(case, patch):
    patch.setattr(MATS, "train", nn.Module.train)


def change_generation(case, patch, **changes):
    generate = case.model.llm.generate

    def changed(**options):
        return generate(**options | {key: f(options[key]) for key, f in changes.items()})

    patch.setattr(case.model.llm, "generate", changed)


def show_padding(case, patch):
    change_generation(case, patch, attention_mask=torch.ones_like)


def hear_louder(case, patch):
    change_generation(case, patch, inputs_embeds=lambda x: 1.1 * x)


def learn_on(case, patch):
    """After it was saved."""
    CHECKS["files"](case)
    for name, weight in case.model.trainable().items():
        if "lora_B" in name:
            patch.setattr(weight, "data", 2 * weight.data)


@pytest.mark.parametrize(
    "kind, fault, name",
    [
        ("mistral", ignore_window, "loss"),
        ("gpt2", train_a_frozen_weight, "gradients"),
        ("llama", leave_a_layer_out, "gradients"),
        ("opt", let_it_drop, "dropout"),
        ("mixtral", let_it_drop, "dropout"),
        ("gpt2", show_padding, "batches"),
        ("llama", hear_louder, "training"),
        ("gpt2", learn_on, "files"),
        ("gpt2", learn_on, "adapter"),
    ],
)
def test_a_check_finds_its_fault(kind, fault, name, tmp_path, monkeypatch):
    case = build(BY_TYPE[kind], tmp_path)
    assert problems(case, [name]) == {}
    fault(case, monkeypatch)
    assert problems(case, [name])


# --- the command ---


def test_the_table(capsys):
    main(["--only", "gpt2,bert"])
    head, line, works, refused = capsys.readouterr().out.splitlines()
    assert {row.count("|") for row in (head, line, works, refused)} == {7}
    assert works.startswith("| GPT-2 | `gpt2` | works | c_attn |")
    assert refused.startswith("| BERT | `bert` | refused: ")
    with pytest.raises(DataError, match="--only: no gpt-2 among .*llama"):
        main(["--only", "gpt-2,llama"])


def test_a_family_that_is_not_as_expected_is_named(capsys, monkeypatch):
    wrong = [BY_TYPE["gpt2"]._replace(refused="padding"), BY_TYPE["bert"]._replace(refused="")]
    monkeypatch.setattr("experiments.matrix.__main__.FAMILIES", wrong)
    with pytest.raises(DataError, match="says: GPT-2, BERT$"):
        main([])
    assert "not causal" in capsys.readouterr().out


def test_the_documentation_has_the_whole_table():
    text = (Path(__file__).parents[1] / "docs/models.md").read_text()
    rows = [
        line.strip("| ").split(" | ")[:3] for line in text.splitlines() if "`model_type`" in line
    ]
    assert rows == [list(COLUMNS[:3])]
    table = text.partition("`model_type`")[2].partition("\n\n")[0].splitlines()[2:]
    got = [tuple(cell.strip() for cell in row.split("|")[1:4]) for row in table]
    assert got == [(family.name, f"`{family.type}`", expected(family)) for family in FAMILIES]
