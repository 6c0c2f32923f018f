"""The documentation: both languages say the same, its links lead somewhere, its commands run."""

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
from argparse import ArgumentParser
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf

from conftest import ROOT, TINY_MODEL, TRAIN_ENVIRONMENT
from projects.SegFormer.engine.config import load_config

ENGLISH = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHINESE = {
    page: page.parent / ("README_zh-CN.md" if page.parent == ROOT else f"zh-CN/{page.name}")
    for page in ENGLISH
}
PAGES = [*ENGLISH, *CHINESE.values()]
OTHERS = [ROOT / "SECURITY.md", ROOT / "pretrained/README.md"]
HAN = r"[\u4e00-\u9fff]"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Section(NamedTuple):
    """A heading with what stands below it.

    Attributes:
        blocks: its fenced code, as [language, line, ...].
        text: all else, in one string, without comments of HTML and the link to the other language.
    """

    level: int
    title: str
    blocks: list[list[str]]
    text: str


@cache
def sections(page: Path) -> list[Section]:
    found, block = [], None
    for line in page.read_text().splitlines():
        heading = re.match(r"(#+) (.+)", line)
        if line.startswith("```"):
            block = None if block else [line[3:]]
            if block:
                found[-1].blocks.append(block)
        elif block:
            block.append(line)
        elif heading:
            found.append(Section(len(heading[1]), heading[2], [], ""))
        elif not re.match(r"<!--|\[(English|简体中文)\]", line):
            found[-1] = found[-1]._replace(text=f"{found[-1].text}{line}\n")
    return found


def spans(text: str) -> list[str]:
    """Code within a text."""
    return re.findall(r"`([^`]+)`", text)


def prose(text: str) -> str:
    """A text without its code and the targets of its links."""
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]+`", "``", text))


def numbers(text: str) -> Counter:
    return Counter(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", prose(text)))


def code(block: list[str]) -> list[str]:
    """Its lines without their comments."""
    return [re.sub(r"\s*(?<!\S)#.*", "", line) for line in block]


def shape_of_tables(text: str) -> list[int]:
    """Columns of each row."""
    rows = [re.sub(r"`[^`]*`", "", line) for line in text.splitlines() if line.startswith("|")]
    return [row.count("|") for row in rows]


def anchors(page: Path) -> list[str]:
    """Those that GitHub gives to the headings of a page."""
    titles = [section.title.lower() for section in sections(page)]
    return [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles]


def links(page: Path, text: str) -> list[tuple[Path | str, str]]:
    """The targets of a text's links: file or address, and anchor."""
    targets = re.findall(r"\]\(([^)]+)\)", text)
    found = []
    for target in targets:
        if "://" in target:
            found.append((target, ""))
            continue
        file, _, anchor = target.partition("#")
        found.append(((page.parent / file).resolve() if file else page, anchor))
    return found


def test_the_readme_is_short():
    for page in (ROOT / "README.md", CHINESE[ROOT / "README.md"]):
        lines = page.read_text().splitlines()
        assert len(lines) <= 200
        assert max(map(len, lines)) <= 130


def test_every_page_has_its_twin():
    chinese = {file.name for file in (ROOT / "docs/zh-CN").iterdir()}
    assert chinese == {page.name for page in ENGLISH[1:]}
    for page, twin in CHINESE.items():
        for one, other, language in ((page, twin, "简体中文"), (twin, page, "English")):
            target = os.path.relpath(other, one.parent)
            assert one.read_text().splitlines()[2] == f"[{language}]({target})"


@pytest.mark.parametrize("page", ENGLISH, ids=name_of)
def test_both_languages_say_the_same(page):
    """Headings, code, numbers, tables, lists and links, section by section."""
    twin = CHINESE[page]
    english, chinese = sections(page), sections(twin)
    assert [it.level for it in english] == [it.level for it in chinese]
    english_of = {other: one for one, other in CHINESE.items()}

    def shared(own: Path, text: str) -> Counter:
        """A link into a page is one into the English page, to the place of the heading there."""
        found = Counter()
        for target, anchor in links(own, text):
            place = anchors(target).index(anchor) if anchor else 0
            found[english_of.get(target, target), place] += 1
        return found

    for one, other in zip(english, chinese):
        where = f"{one.title} / {other.title}"
        assert list(map(code, one.blocks)) == list(map(code, other.blocks)), where
        assert set(spans(one.text)) == set(spans(other.text)), where
        assert numbers(one.text) == numbers(other.text), where
        assert shape_of_tables(one.text) == shape_of_tables(other.text), where
        assert one.text.count("\n- ") == other.text.count("\n- "), where
        assert shared(page, one.text) == shared(twin, other.text), where


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_links_lead_somewhere(page):
    text = "".join(section.text for section in sections(page)) if page in PAGES else ""
    for target, anchor in links(page, text or page.read_text()):
        if isinstance(target, Path):
            assert target.exists(), target
            assert not anchor or anchor in anchors(target), (target, anchor)


@pytest.mark.parametrize("page", CHINESE.values(), ids=name_of)
def test_chinese_is_set_as_chinese(page):
    """Full-width punctuation, and a space between Chinese and Latin letters, digits and code."""
    for section in sections(page):
        text = prose(section.title + "\n" + section.text)
        halves = rf"{HAN}[,;:!?()]|[,;:!?)]{HAN}|\({HAN}"
        spaces = rf"{HAN}[A-Za-z0-9`]|[A-Za-z0-9`%]{HAN}|[，。；：、（）] [^|\s]"
        wrong = f"{halves}|{spaces}"
        assert not re.findall(rf".{{0,9}}(?:{wrong}).{{0,9}}", text)
        assert not re.search(r"\d ?[万亿兆]", text)


COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:python|bash) (?:tools|model_utils)/")


def commands() -> list[str]:
    """Every command of the English pages that starts a script of this project."""
    found = []
    for page in ENGLISH:
        for section in sections(page):
            blocks = [line for block in section.blocks if block[0] == "bash" for line in block[1:]]
            found += filter(COMMAND.match, blocks + spans(section.text))
    return list(dict.fromkeys(found))


class Parsed(Exception):
    """A tool's parser has taken the arguments."""


@pytest.fixture
def parsed(monkeypatch):
    """What a tool's parser makes of words of a command line; the tool does not go on."""

    def stop(self, words):
        raise Parsed(self.parse_known_intermixed_args(words))

    def parse(tool: str, words: list[str]) -> dict:
        module = importlib.import_module(f"projects.SegFormer.{tool[:-3].replace('/', '.')}")
        with monkeypatch.context() as patch, pytest.raises(Parsed) as ended:
            patch.setattr(ArgumentParser, "parse_args", stop)
            patch.setattr(ArgumentParser, "parse_intermixed_args", stop)
            module.main(words)
        namespace, unknown = ended.value.args[0]
        assert not unknown
        return vars(namespace)

    return parse


def test_commands_name_what_is_there(parsed, data_root):
    """Scripts, their options, configs, and settings of the configs."""
    overrides = {}  # of each config
    for command in commands():
        words = shlex.split(command, comments=True)
        _, script, *arguments = [it for it in words if not re.match("[A-Z_]+=", it)]
        assert (ROOT / script).is_file(), command
        if script == "tools/train.sh":
            config, count, *rest = [it for it in arguments if it != "tools/train_net.py"]
            assert int(count) >= 1, command
            found = parsed("tools/train_net.py", ["--config-file", config, *rest])
            overrides.setdefault(config, []).extend(found["opts"])
        elif script.endswith(".sh"):
            source = (ROOT / script).read_text()
            assert all(word in source for word in arguments), command
        else:
            found = parsed(script, arguments)
            if found.get("config", "CONFIG") not in (None, "CONFIG"):  # as a page says it for any
                overrides.setdefault(found["config"], []).extend(found.get("overrides", ()))
    assert len(overrides) > 5
    for config, settings in overrides.items():
        file = str(ROOT / config.removeprefix("projects/SegFormer/"))
        load_config(file, [*settings, f"data.root={data_root}"])


def test_code_in_sentences_names_what_is_there(data_root):
    """Paths of this repository, options of its tools and of pytest, settings of its configs."""
    folders = ("tools", "engine", "model_utils")
    sources = [file for folder in folders for file in (ROOT / folder).rglob("*")]
    sources = [it for it in sources if it.suffix in (".py", ".sh")] + [ROOT / "tests/conftest.py"]
    text = "".join(file.read_text() for file in sources)
    options = set(re.findall(r"--[a-z0-9][a-z0-9_-]*", text))
    configs = [
        load_config(str(ROOT / f"configs/segformer_{name}.py"), [f"data.root={data_root}"])
        for name in ("own", "city", "imgnet1k_pretrain")
    ]
    places = "configs|dataset|docs|engine|evaluation|model_utils|modeling|tests|tools"
    for span in (
        it for page in ENGLISH for section in sections(page) for it in spans(section.text)
    ):
        for path in re.findall(rf"(?<![\w./-])(?:{places})/[\w./-]*", span):
            assert (ROOT / path).exists(), span
        for option in re.findall(r"(?<!\S)--[a-z0-9][a-z0-9_-]*", span):
            assert option in options, span
        for key in re.findall(r"(?<!\S)'?([a-z]\w*(?:\.\w+)+)=", span):
            parent, _, leaf = re.sub(r"^cfg\.", "model.cfg.", key).rpartition(".")
            holders = [OmegaConf.select(config, parent) for config in configs]
            assert any(holder is not None and leaf in holder for holder in holders), span


def test_python_in_the_pages_imports_what_is_there():
    """And is Python. The README's runs below."""
    blocks = [block for page in ENGLISH for section in sections(page) for block in section.blocks]
    for language, *lines in blocks:
        if language == "python":
            for node in ast.walk(ast.parse("\n".join(lines))):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("projects."):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, it.name) for it in node.names), lines


# Commands of the README that no test can run here, and why.
NOT_RUN = {
    "bash tools/quickstart.sh": "tests/test_quickstart.py runs it",
    "bash tools/setup.sh": "downloads packages; tests/test_surroundings.py runs it",
    "source .venv/bin/activate": "as above",
    "python -m pip install -c constraints.txt tensorboard": "downloads a package",
    "tensorboard --logdir output/segformer_own": "is a package that the project does not install",
    "bash tools/train.sh configs/segformer_city.py 4 train.dist.tensor_parallel_size=2": "4 GPUs",
    "bash tools/train.sh configs/segformer_ade20k.py 8 model_size=b3 "
    "cfg.pretrained_model_path=pretrained/mit_b3.pth": "8 GPUs, ADE20K",
}
# What makes a training short; the paper's files have MiT's number of heads.
SHORT = (
    *TINY_MODEL,
    "cfg.hidden_sizes=[8,16,20,32]",
    "cfg.num_attention_heads=[1,2,5,8]",
    "data.crop=[64,64]",
    "train.train_iter=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.0.num_workers=0",
)


def make_world(folder: Path) -> None:
    """What the README's commands find there: SOURCE, photos, photo.jpg and weights to start from.

    SOURCE has 6 photos of 72x96 with masks of one class, 0 and 255.
    """
    rng = np.random.default_rng(0)
    for name in ("SOURCE/images", "SOURCE/masks", "photos", "pretrained"):
        (folder / name).mkdir(parents=True)
    for index in range(6):
        mask = np.zeros((72, 96), np.uint8)
        cv2.circle(mask, tuple(map(int, rng.integers(20, 50, 2))), 15, 255, -1)
        image = (40 + mask[..., None] // 2 + rng.integers(0, 40, (72, 96, 3))).astype(np.uint8)
        cv2.imwrite(str(folder / f"SOURCE/images/{index}.jpg"), image)
        cv2.imwrite(str(folder / f"SOURCE/masks/{index}.png"), mask)
    cv2.imwrite(str(folder / "photos/a.jpg"), image)
    cv2.imwrite(str(folder / "photo.jpg"), image)


def run_line(line: str, folder: Path) -> None:
    """A command of the README, in `folder`. Trainings are shortened; tools run in this process."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["bash", "tools/train.sh"]:
        script, config, *rest = words[1:]
        command = ["bash", str(ROOT / script), str(ROOT / config), *rest, *SHORT]
        if "cfg.pretrained_model_path=pretrained/mit_b0.pth" in rest:
            tool = importlib.import_module("projects.SegFormer.tools.convert_weights")
            weights = ["--from", "output/segformer_own/model_best", "--to", "official"]
            tool.main([*weights, "--output", "pretrained/mit_b0.pth"])
        ended = subprocess.run(
            command, cwd=folder, env=TRAIN_ENVIRONMENT, capture_output=True, text=True, timeout=200
        )
        assert ended.returncode == 0, f"{line}\n{ended.stderr}"
        return
    assert words[0] == "python", f"{line}: neither run by this test nor named in NOT_RUN"
    arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in words[2:]]
    tool = importlib.import_module(f"projects.SegFormer.tools.{Path(words[1]).stem}")
    assert not tool.main(arguments), line


@pytest.mark.slow
def test_the_readmes_commands_run(tmp_path, monkeypatch):
    """All of them in their order, as a new user types them: from a folder to a deployed model."""
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    seen = {}
    for section in sections(ROOT / "README.md"):
        for language, *lines in section.blocks:
            if language == "python":
                seen = {}
                exec("\n".join(lines), seen)
            else:
                for line in lines:
                    if line not in NOT_RUN:
                        run_line(line, tmp_path)
            if section.title == "Evaluate":
                evaluation = json.loads(Path("output/segformer_own/evaluation.json").read_text())
                assert 0 <= evaluation["mIoU"] <= 100
            if section.title == "Python":
                assert seen["result"].labels.shape == (72, 96)
                assert seen["result"].probabilities.shape == (72, 96, 2)
            if "labels" in seen:
                assert seen["labels"].shape == (72, 96) and seen["labels"].max() < 2
    assert {part["mask"].size for part in seen["parts"]} == {(96, 72)}
    for name in ("a", "photo"):
        labels = cv2.imread(f"predictions/{name}_labels.png", cv2.IMREAD_UNCHANGED)
        assert labels.shape == (72, 96) and labels.max() < 2
