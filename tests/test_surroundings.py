"""What stands around a tool: left-over variables, another clone, --help, how it ends."""

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from conftest import ROOT, error_line, run_tool
from projects.SegFormer.engine import command_line
from projects.SegFormer.modeling.errors import InputError

TOOLS = sorted(
    path.stem for path in (ROOT / "tools").glob("*.py") if "\nif __name__" in path.read_text()
)
# Started by train.sh, with arguments that nobody types.
OWN_TALK = {"check_ranks", "train_net"}
LEFT_OVER = dict(
    WORLD_SIZE="4", RANK="2", LOCAL_RANK="2", MASTER_ADDR="192.0.2.1", MASTER_PORT="12345"
)


# ---- --help -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [tool for tool in TOOLS if tool not in OWN_TALK] + ["train_net"])
def test_help_shows_the_examples(name, capsys):
    module = importlib.import_module(f"projects.SegFormer.tools.{name}")
    main = module.parse if name == "train_net" else module.main
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "show this help message" in shown
    text = module.__doc__
    if name == "train_net":
        text = importlib.import_module("projects.SegFormer.engine.train_arguments").__doc__
    examples = [line for line in text.splitlines() if line.startswith("    ")]
    assert examples and all(line in shown.splitlines() for line in examples)


@pytest.mark.parametrize("script", ["train", "setup", "test", "quickstart"])
@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["configs/segformer_camvid.py", "2", "--help"]]
)
def test_help_of_a_script_is_its_head(script, words):
    file = ROOT / f"tools/{script}.sh"
    process = subprocess.run(["bash", file, *words], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0 and not process.stderr
    head = [line for line in file.read_text().splitlines()[1:8] if line.startswith("#")]
    assert [f"# {line}" for line in process.stdout.splitlines()[: len(head)]] == head
    assert f"bash tools/{script}.sh" in process.stdout


def test_help_of_the_trainer_asks_no_rank():
    """Not even with the variables of another training, whose other ranks would not come."""
    shown = run_tool("tools/train_net.py", "--help", timeout=20, **LEFT_OVER)
    assert shown.returncode == 0 and "--eval-only" in shown.stdout


@pytest.mark.parametrize("words", [["--resum=3"], ["--config-file"], ["--nothing"], []])
def test_wrong_words_are_told_before_any_rank_waits(words):
    process = run_tool("tools/train_net.py", *words, timeout=20, **LEFT_OVER)
    assert process.returncode == 2 and "error: " in process.stderr


# ---- Variables ----------------------------------------------------------------------------------

STARTED = """
import sys, os
sys.argv = ["tools/get_flops.py"]
os.write(2, b"before\\n")
import projects.SegFormer.engine.process
import oneflow as flow
os.write(2, b"after\\n")
print(flow.env.get_world_size(), flow.ones(2).sum().item())
"""


def test_left_over_ranks_and_the_noise_of_loading():
    process = run_tool("-c", STARTED, timeout=60, **LEFT_OVER)
    assert (process.returncode, process.stdout) == (0, "1 2.0\n")
    assert process.stderr == "before\nafter\n"


def test_what_is_said_while_loading_is_kept(tmp_path):
    """Also when the process dies of it, and not the line about InfiniBand."""
    fake = tmp_path / "oneflow.py"
    fake.write_text(
        "import os\nos.write(2, b'libibverbs not available, skipped\\nF1125 check failed\\nhalf')\n"
        "os.abort()\n"
    )
    code = STARTED.replace(
        "import sys, os", f"import sys, os; sys.path.insert(0, {str(tmp_path)!r})"
    )
    process = run_tool("-c", code)
    assert process.returncode == -6
    assert process.stderr == "before\nF1125 check failed\nhalf"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "MASTER_PORT", "LOCAL_RANK"])
def test_variable_that_is_no_number(name):
    process = run_tool(
        "tools/train_net.py", "--config-file", "x.py", timeout=20, **LEFT_OVER | {name: "two"}
    )
    assert process.returncode == 1
    assert process.stderr == f"error: {name}=two in the environment is no number: unset it\n"


@pytest.mark.slow
def test_ranks_that_never_come_are_told(tmp_path):
    """train_net.py by itself, as LiBai's launcher starts it: a limit and a word."""
    code = "import projects.SegFormer.engine.process as p"
    script = tmp_path / "train_net.py"
    script.write_text(f"{code}\n")
    fake = tmp_path / "oneflow.py"
    fake.write_text("import time\ntime.sleep(100)\n")
    text = (ROOT / "engine/process.py").read_text().replace("A_WORD_EVERY = 30", "A_WORD_EVERY = 1")
    (tmp_path / "process.py").write_text(text)
    script.write_text("import process\n")
    process = run_tool(str(script), timeout=20, NODE_WAIT="3", **LEFT_OVER)
    assert process.returncode == -15
    *words, error = process.stderr.splitlines()
    assert len(words) == 2 and all("waits for the others at 192.0.2.1:12345" in w for w in words)
    assert error.startswith("error: rank 2 of WORLD_SIZE=4 waits") and "NODE_WAIT" in error


def test_other_ranks_load_oneflow_when_rank_0_listens(tmp_path):
    """OneFlow asks for rank 0 once, and then every ten seconds."""
    ask = "socket.create_connection(('127.0.0.1', int(os.environ['MASTER_PORT'])))"
    (tmp_path / "oneflow.py").write_text(f"import os, socket\n{ask}\nos._exit(7)\n")
    script = tmp_path / "train_net.py"
    script.write_text("import projects.SegFormer.engine.process\n")
    with socket.socket() as rank_0:
        rank_0.bind(("127.0.0.1", 0))
        listens = threading.Timer(1, rank_0.listen)
        listens.start()
        address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(rank_0.getsockname()[1]))
        process = run_tool(str(script), timeout=20, **LEFT_OVER | address)
        listens.join()
    assert process.returncode == 7, process.stderr


# ---- Clones -------------------------------------------------------------------------------------


@pytest.fixture
def other_clone(tmp_path):
    """The files of a second clone, without an environment of its own."""
    clone = tmp_path / "clone"
    for folder in ("tools", "engine", "configs"):
        shutil.copytree(ROOT / folder, clone / folder)
    return clone


@pytest.mark.parametrize("tool", ["analyze", "draw_street_scenes", "train_net"])
def test_tool_does_not_run_the_code_of_another_clone(other_clone, tool):
    words = ["--config-file", "configs/segformer_camvid.py"] if tool == "train_net" else []
    error = error_line(run_tool(str(other_clone / f"tools/{tool}.py"), *words))
    assert str(other_clone) in error and str(ROOT) in error and "tools/setup.sh" in error


def test_train_sh_takes_no_python_of_another_clone(other_clone):
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    process = subprocess.run(
        ["bash", "tools/train.sh", "configs/segformer_camvid.py", "1"],
        cwd=other_clone,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert f"run bash {other_clone}/tools/setup.sh" in process.stderr


@pytest.mark.slow
def test_setup_that_fails_says_why(other_clone):
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, other_clone)
    process = subprocess.run(
        ["bash", other_clone / "tools/setup.sh"],
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    *_, reason, verdict = process.stderr.splitlines()
    assert reason.startswith("ERROR: ")
    assert verdict.startswith("setup: pip cannot install ")
    assert verdict.endswith(f"all of it is in {other_clone}/setup.log")


# ---- The end ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, code, told",
    [
        (InputError("x.png: damaged"), 1, "error: x.png: damaged\n"),
        (FileNotFoundError(2, "No such file or directory", "a\nb.png"), 1, r"error: a\nb.png: No"),
        (PermissionError(13, "Permission denied"), 1, "error: Permission denied\n"),
        (MemoryError(), 1, "error: out of memory"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_person_can_mend_is_one_line(error, code, told, capsys):
    def main(arguments):
        raise error

    with pytest.raises(SystemExit) as end:
        command_line.run(main)
    shown = capsys.readouterr().err
    assert end.value.code == code and shown.startswith(told) and shown.count("\n") == bool(told)


def test_sigterm_cleans_up():
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def main(arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as end:
            command_line.run(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 143 and cleaned


def test_closed_pipe_is_no_error():
    tool = f"{sys.executable} tools/analyze.py --help | true; echo ${{PIPESTATUS[0]}}"
    process = subprocess.run(["bash", "-c", tool], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "0\n" and not process.stderr
