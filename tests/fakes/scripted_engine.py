"""A real supervisor over a scripted worker: `python scripted_engine.py SOCKET LIMITS WORKER...`.

LIMITS is JSON with the fields of `Limits` that differ from the product's; WORKER goes to the
scripted worker.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from smallm_ros.engine.supervisor import supervise
from smallm_ros.engine.watch import Limits

if __name__ == '__main__':
    limits = json.loads(sys.argv[2])
    if 'retry_ns' in limits:
        limits['retry_ns'] = tuple(limits['retry_ns'])
    worker = [sys.executable, str(Path(__file__).with_name('scripted_worker.py'))]
    sys.exit(supervise(Path(sys.argv[1]), [*worker, *sys.argv[3:]], Limits(**limits)))
