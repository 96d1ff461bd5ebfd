"""A supervisor over the real worker that does not give up: `engine_process SOCKET LIMITS ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from smallm_ros.engine.supervisor import supervise
from smallm_ros.engine.watch import Limits

if __name__ == '__main__':
    limits = json.loads(sys.argv[2])
    worker = [sys.executable, '-m', 'smallm_ros.engine.worker', *sys.argv[3:]]
    sys.exit(supervise(Path(sys.argv[1]), worker,
                       Limits(**{**limits, 'retry_ns': tuple(limits['retry_ns'])})))
