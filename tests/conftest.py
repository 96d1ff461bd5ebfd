"""What every test run needs of its surroundings, whoever starts it.

A ROS domain of its own, on this machine alone: two runs must not mix. And a SIGINT that means
something: a shell that starts a run in the background has it ignored, in every child too.
"""

from __future__ import annotations

import os
import signal

os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
