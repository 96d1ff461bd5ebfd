"""A real worker process whose model is a script: `--script` is a JSON list of lines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smallm_ros.core.clock import MS, Clock
from smallm_ros.core.errors import ModelFileError
from smallm_ros.engine.progress import ProgressWriter
from smallm_ros.engine.scripted import Act, Line, ScriptedDecider
from smallm_ros.engine.worker import add_place_options, place, serve
from smallm_ros.steady import SteadyClock, now_ns, sleep_until

if TYPE_CHECKING:
    from smallm_ros.engine.decode import Decider


def main() -> int:
    """Run the worker."""
    parser = argparse.ArgumentParser()
    add_place_options(parser)
    parser.add_argument('--script', default='[{}]')
    parser.add_argument('--load-until', type=Path, help='load until this file is there')
    parser.add_argument('--load', choices=('good', 'bad-file', 'crash', 'hang'), default='good')
    parser.add_argument('--declare-passes', type=int, default=0)
    options = parser.parse_args()
    lines = [
        Line(**{**fields, 'act': Act(fields.get('act', 'decide'))})
        for fields in json.loads(options.script)
    ]

    def load(writer: ProgressWriter, clock: Clock) -> Decider:
        writer.loading(0.5)
        while options.load_until is not None and not options.load_until.exists():
            sleep_until(now_ns() + 10 * MS)
        if options.load == 'bad-file':
            raise ModelFileError('model.gguf: truncated')
        if options.load == 'crash':
            raise RuntimeError('the script says so')
        while options.load == 'hang':
            sleep_until(now_ns() + 100 * MS)
        return ScriptedDecider(
            lines, clock, sleep_until, writer, declare_passes=options.declare_passes
        )

    return serve(place(options), load, SteadyClock())


if __name__ == '__main__':
    sys.exit(main())
