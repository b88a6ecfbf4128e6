"""If this failed, threads that share the steps of a kernel would lose a task, do one twice or start one too early."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("options", [["-O3"], ["-O1", "-fsanitize=thread"]], ids=["fast", "watched for races"])
def test_every_task_of_every_step_is_done_once_and_in_its_step(options: list[str], tmp_path: Path) -> None:
    program, source = tmp_path / "crew", Path(__file__).with_name("crew.cpp")
    command = ["c++", "-std=c++20", "-pthread", *options, "-I", str(ROOT / "csrc"), str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "tsan" in built.stderr:
        pytest.skip("this compiler comes without its thread sanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
