"""The stamp of a world changes with the code, not with its text."""

import shutil
from pathlib import Path

import pytest

from shards.tiny import recipe as R


@pytest.fixture
def edited(tmp_path):
    """edited(file, old, new): the recipe after this edit to the code of the tiny world."""

    def edit(file, old, new):
        folder = tmp_path / "tiny"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(Path(R.__file__).parent, folder)
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))
        return R.recipe(folder)

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, old, new",
    [
        ("models.py", "LLM_LR = 6500, 48, 2e-3", "LLM_LR = 6500, 48, 3e-3"),
        ("sounds.py", "(80, 160)", "(80, 161)"),
        ("signals.py", "np.cumsum(hz", "np.cumprod(hz"),
        ("words.py", "steadily", "evenly"),
        ("questions.py", "* 3", "* 2"),
        ("scenes.py", "if not sounder.gap", "if sounder.gap"),
    ],
)
def test_other_code_is_another_world(edited, file, old, new):
    assert edited(file, old, new) != R.recipe()


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, old, new",
    [
        ("sounds.py", "# closed, open, closed", "# shut, open, shut"),
        ("models.py", "# --- CLAP -", "\n# ---"),
        ("world.py", "SCENES = {", "SCENES =   {"),
        ("words.py", '"""barks -> bark, ', '"""Barks: '),
        ("words.py", "import re\n", "import re\nimport sys\n"),
        ("words.py", "def a(phrase: str) -> str:", "def a(phrase):"),
        ("recipe.py", "[:16]", "[:17][:16]"),
    ],
)
def test_other_text_is_the_same_world(edited, file, old, new):
    assert edited(file, old, new) == R.recipe()
