"""Ctrl-C: the first one loses nothing, the second one obeys at once."""

import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from vidgen.train import read_metrics
from vidgen.train.signals import stop_on_signals

TRAIN = (
    *("-m", "vidgen.cli", "train", "pixelcnn", "--device", "cpu", "--steps", "60", "--batch-size", "16"),
    *("--hidden", "6", "--blocks", "1", "--log-every", "1", "--validate-every", "20"),
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_interrupts(number):
    heard = []
    with pytest.raises(KeyboardInterrupt), stop_on_signals(lambda: heard.append("stop"), speak=False):
        os.kill(os.getpid(), number)
        assert heard == ["stop"]
        os.kill(os.getpid(), number)
        time.sleep(5)  # the signal arrives before this ends
    assert heard == ["stop"]


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals(lambda: None):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run([sys.executable, *TRAIN, "--out", "run"], cwd=folder, env=environment, check=True, timeout=240)
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_program_ends_at_the_same_bits(number, environment, run_program, whole, tmp_path):
    program = subprocess.Popen(
        [sys.executable, *TRAIN, "--out", "cut"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    record = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (record.exists() and len(read_metrics(record)) >= 3):
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline, "no step was recorded"
        time.sleep(0.02)
    program.send_signal(number)
    output, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert "Ctrl-C again quits" in errors
    assert "Traceback" not in errors
    step = read_metrics(record)[-1]["step"]
    assert f"stopped and saved at step {step} of 60" in output
    assert 3 <= step < 60

    run_program(*TRAIN, "--out", "cut", "--resume")
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes()
        assert load_file(tmp_path / "cut" / name)
    assert record.read_text() == (whole / "metrics.jsonl").read_text()
