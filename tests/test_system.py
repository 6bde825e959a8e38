"""What is done where the operating system lacks something."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cgc import system
from cgc.run_folder import at_work, open_run

WITHOUT = """import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
from cgc.cli import main
sys.exit(main({}))"""


def test_commands_run_where_there_are_neither_locks_nor_resources(own_run):
    """As on Windows, whose Python has no such modules."""
    words = ["export", str(own_run), "--format", "boxes"]
    made = subprocess.run([sys.executable, "-c", WITHOUT.format(words)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert (own_run / "export/boxes.csv").exists()


def test_without_locks_nothing_is_held_and_without_resources_no_memory_is_told(tmp_path, monkeypatch):
    held = system.hold(tmp_path)
    with pytest.raises(BlockingIOError):
        system.hold(tmp_path)
    system.let_go(held)
    assert system.peak_rss_bytes() > 1e7
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "resource", None)
    assert system.hold(tmp_path) is None and system.hold(tmp_path) is None and system.peak_rss_bytes() == 0
    system.let_go(None)


def test_a_step_is_done_without_either(own_run, monkeypatch):
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "resource", None)
    run = open_run(own_run)
    with at_work(own_run), run.changing("report"):
        run.finish("report", 0.1)
    assert open_run(own_run).is_done("report")
