"""Ctrl-C: the first one loses nothing, the second one obeys at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from vidgen.signals import stop_on_signals
from vidgen.train import read_metrics
from vidgen.train.state import latest_state

TRAIN = (
    *("-m", "vidgen.cli", "train", "pixelcnn", "--device", "cpu", "--steps", "150", "--batch-size", "16"),
    *("--hidden", "6", "--blocks", "1", "--log-every", "1", "--validate-every", "20"),
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_interrupts(number):
    heard = []

    def be_signalled_twice():
        with stop_on_signals(lambda: heard.append("stop"), speak=False):
            os.kill(os.getpid(), number)
            assert heard == ["stop"]
            os.kill(os.getpid(), number)
            time.sleep(5)  # the signal arrives before this ends

    with pytest.raises(KeyboardInterrupt):
        be_signalled_twice()
    assert heard == ["stop"]


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals(lambda: None):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def _interrupt(number, environment, folder):
    """Starts a run, sends it a signal when it is under way, and returns what it printed and the step it stopped at."""
    program = subprocess.Popen(
        [sys.executable, *TRAIN, "--out", "cut"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    record = folder / "cut" / "metrics.jsonl"
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
    return output, read_metrics(record)[-1]["step"]


def test_sigterm_saves_too(environment, tmp_path):
    output, step = _interrupt(signal.SIGTERM, environment, tmp_path)
    assert f"stopped and saved at step {step} of 150" in output
    assert latest_state(tmp_path / "cut").name == f"step-{step:08d}"


def test_interrupted_and_resumed_program_ends_at_the_same_bits(environment, run_program, tmp_path):
    output, step = _interrupt(signal.SIGINT, environment, tmp_path)
    assert f"stopped and saved at step {step} of 150" in output
    assert 3 <= step < 150
    run_program(*TRAIN, "--out", "cut", "--resume")
    run_program(*TRAIN, "--out", "whole")
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
