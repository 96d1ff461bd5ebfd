"""How `smallm` ends: by a signal, with nobody reading, and with its caller as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smallm_ros.cli import check, main
from smallm_ros.core.errors import OperatorError

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ['check', '--schema']


def test_nobody_reads_what_it_prints() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, '-m', 'smallm_ros.cli.main', *SCHEMA], cwd=ROOT, stdout=writing,
            stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, '')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_what_runs(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    unwound = []

    def run(_: object) -> int:
        try:
            signal.raise_signal(number)
            return 0
        finally:
            signal.raise_signal(number)  # being asked twice does not break the clearing up
            unwound.append(number)

    monkeypatch.setattr(check, 'run', run)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup a SIGHUP is ignored
    try:
        with pytest.raises(SystemExit) as ended:
            main.main(SCHEMA)
        assert ended.value.code == 128 + number
        assert unwound == [number]
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_what_nohup_switched_off_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    monkeypatch.setattr(check, 'run', run)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main.main(SCHEMA) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_and_an_operators_error_are_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code, line in (
        (KeyboardInterrupt(), 130, '\nsmallm check: interrupted\n'),
        (OperatorError('x.yaml: is odd'), 2, 'smallm check: x.yaml: is odd\n'),
    ):
        def run(_: object, error: BaseException = error) -> int:
            raise error

        monkeypatch.setattr(check, 'run', run)
        assert main.main(SCHEMA) == code
        assert capsys.readouterr().err == line
