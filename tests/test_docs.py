"""README.md and docs/: snippets run, commands and their options exist, links lead somewhere."""

import argparse
import importlib.util
import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from unittest.mock import create_autospec, patch

import pytest
import torch.distributed.run

import config
import mats
from train import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = {
    str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}
OURS = {p.stem for p in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/__init__.py")}
MADE = ("data/", "out/", "eval/", "vectors/", "report.md")  # by commands
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(text: str, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text) if name == language]


def spans(text: str) -> list[str]:
    """Everything between single backticks, outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands(text: str) -> list[str]:
    """Every command of the page, one a string: the lines of its blocks, and spans that name one."""
    lines = "\n".join(blocks(text, "")).replace("\\\n", " ").splitlines() + spans(text)
    parts = (part.strip() for line in lines for part in line.split("&&"))
    return [part for part in parts if re.match(r"(python|torchrun|pip) ", part)]


ALL = [(page, command) for page, text in PAGES.items() for command in dict.fromkeys(commands(text))]


# --- commands -------------------------------------------------------------------------------------


class Asked(Exception):
    """Carries the parser of a program that was about to read its arguments."""


def ask(parser, *_, **__):
    raise Asked(parser)


@cache
def parser_of(module: str) -> argparse.ArgumentParser | None:
    """The parser of `python -m module`, caught before it reads; None where main() has none."""
    spec = importlib.util.find_spec(module)
    assert spec, f"there is no module {module}"
    if spec.submodule_search_locations:  # a package is run by its __main__.py
        return parser_of(f"{module}.__main__")
    assert '__name__ == "__main__"' in Path(spec.origin).read_text(), f"{module} cannot be run"
    main = getattr(importlib.import_module(module), "main", None)
    with patch.object(argparse.ArgumentParser, "parse_args", ask), patch("sys.argv", [module]):
        try:
            return main and main()
        except Asked as asked:
            return asked.args[0]


def check_ours(module: str, arguments: list[str]):
    """Raises unless the program takes these arguments."""
    if module == "train":
        config.load(TrainConfig, arguments)
    elif parser := parser_of(module):
        parser.parse_args(arguments)
    else:
        assert not [a for a in arguments if a.startswith("-")], f"{module} takes no options"


def check_pip(arguments: list[str]):
    required = (ROOT / "requirements.txt").read_text().split()
    for before, argument in zip([""] + arguments, arguments):
        assert before != "-r" or (ROOT / argument).exists(), argument
        assert not argument.startswith("torch==") or argument in required, argument


def check(command: str):
    """Raises unless script or module exist and take these arguments."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "pip":
        return check_pip(arguments[1:])
    if program == "torchrun":
        launched = torch.distributed.run.get_args_parser().parse_args(arguments)
        script, arguments = launched.training_script, launched.training_script_args
    elif arguments[0] == "-m":
        _, script, *arguments = arguments
    else:
        script, *arguments = arguments
    if script.split(".")[0] not in OURS:
        assert importlib.util.find_spec(script), f"there is no module {script}"
        return None
    assert "/" not in script, f"{script} is run as a module"
    return check_ours(script.removesuffix(".py"), arguments)


@pytest.mark.parametrize(("page", "command"), ALL)
def test_commands(page, command, capsys):
    try:
        check(command)
    except SystemExit as refused:
        pytest.fail(f"{page}: {command}\n{refused}\n{capsys.readouterr().err}")


def test_options_by_name():
    """`--option` in the running text belongs to one of the programs that the pages name."""
    known = {f"--{name}" for name in TrainConfig.__dataclass_fields__}
    for module in re.findall(
        r"python (?:-m )?([\w.]+?)(?:\.py)?\s", "\n".join(c + " " for _, c in ALL)
    ):
        if module.split(".")[0] in OURS - {"train"} and (parser := parser_of(module)):
            known.update(parser._option_string_actions)
    for page, text in PAGES.items():
        for span in spans(text):
            if not re.match("python|torchrun|pip", span):
                unknown = set(re.findall(r"(?<!\S)--[\w-]+", span)) - known
                assert not unknown, f"{page}: `{span}`"


# --- snippets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "python")])
def test_snippets_run(page, tmp_path, monkeypatch):
    """In the page's order, in an empty folder. A snippet with `# name.py` on top is that file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("dog.wav").write_bytes(b"a sound that is packed and not read")
    monkeypatch.setattr(mats, "MATS", create_autospec(mats.MATS))  # 13 GB to download
    names = {}
    for code in blocks(PAGES[page], "python"):
        if file := re.match(r"# (\w+\.py)\n", code):
            Path(file[1]).write_text(code)
        exec(compile(code, page, "exec"), names)
    for made in re.findall(r'ShardWriter\("(.+?)"', PAGES[page]):
        assert json.loads(Path(made, "index.json").read_text())["n"] == 1
    sys.modules.pop("my_encoders", None)


# --- files, modules, links ------------------------------------------------------------------------


def exists(name: str) -> bool:
    """Whether a dotted name of ours is a module, or something in one."""
    module, _, inside = name.rpartition(".")
    if importlib.util.find_spec(module) is None:
        return False
    found = importlib.import_module(module)
    return hasattr(found, inside) or (
        hasattr(found, "__path__") and importlib.util.find_spec(name) is not None
    )


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_exist(page):
    written = re.findall(r"^# (\w+\.py)$", PAGES[page], re.M)  # by a snippet
    for span in spans(PAGES[page]):
        if re.fullmatch(r"\w+(\.\w+)+", span) and span.split(".")[0] in OURS:
            assert exists(span) or (ROOT / span).exists(), f"{page}: `{span}`"
        elif re.fullmatch(r"[\w./-]*(\.(py|md|toml)|/|/run)", span) and "NAME" not in span:
            assert (ROOT / span).exists() or span.startswith(MADE) or span in written, (
                f"{page}: `{span}`"
            )


def anchors(text: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[page]))
    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{page}: {link}"


def test_readme_is_short_and_leads_to_every_page():
    assert len((ROOT / "README.md").read_bytes()) <= 8000
    for page in PAGES:
        assert page == "README.md" or f"({page}" in PAGES["README.md"], page


def test_tables_and_pictures_are_small():
    for page, text in PAGES.items():
        wide = [row for row in FENCE.sub("", text).splitlines() if row.count("|") > 7]
        assert not wide, f"{page}: {wide[0]}"
    for image in [*ROOT.glob("docs/*.png"), *ROOT.glob("docs/*.svg")]:
        assert image.stat().st_size < 200_000, image


def test_every_requirement_has_its_reason():
    required = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.M)
    table = PAGES["docs/models.md"].partition("## Dependencies")[2]
    reasons = ", ".join(re.findall(r"^\| (.+?) \| ", table, re.M)).split(", ")
    assert set(required) == set(reasons) - {"package"}
