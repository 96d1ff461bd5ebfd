"""`python -m tests.faults`: inject faults into the real processes and print what came of each."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from smallm_ros import steady
from tests.faults.classes import FAULTS
from tests.faults.run import Interrupted, Run, series, table
from tests.faults.system import Setting


def main() -> int:
    """Run the command line; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog='python -m tests.faults', description=__doc__)
    parser.add_argument('--classes', help='names of faults, comma between; the beginning will do')
    parser.add_argument('-n', type=int, default=60, help='injections of each main class')
    parser.add_argument('--small', type=int, default=10, help='injections of each other class')
    parser.add_argument('--dwells', choices=('short', 'shipped'), default='short')
    parser.add_argument('--no-fifo', action='store_true', help='schedule the gate as everybody')
    parser.add_argument('--domain', type=int, default=51, help='ROS_DOMAIN_ID')
    parser.add_argument('--out', type=Path, help='folder of the run')
    parser.add_argument('--resume', type=Path, metavar='DIR', help='go on with this run')
    parser.add_argument('--list', action='store_true', help='print the names and end')
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if options.classes is None or any(
        fault.name.startswith(name.strip()) for name in options.classes.split(','))]
    if options.list:
        for fault in faults:
            print(f'{fault.name:28} {options.n if fault.main else options.small}')
        return 0
    if not faults:
        parser.error(f'--classes {options.classes}: no such class; --list names them')
    folder = options.resume or options.out or Path('runs') / f'faults-{steady.wall_text()}'
    run = Run(folder)

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    setting = Setting(dwells=options.dwells, fifo=not options.no_fifo, domain=options.domain)
    wanted = [(fault, options.n if fault.main else options.small) for fault in faults]
    try:
        for line in series(run, wanted, setting):
            print(line, flush=True)
    except Interrupted:
        print(f'interrupted; to go on: --resume {folder}')
    results = run.results()
    text = table(results)
    (folder / 'table.txt').write_text(text, encoding='utf-8')
    print(f'\n{text}\n{folder}')
    return int(any(result['violations'] for result in results))


if __name__ == '__main__':
    sys.exit(main())
