"""Fast DDS without shared memory, for a process that must not wait for another's death.

Fast DDS' shared memory is also shared locks: who publishes to a process that was killed with one
of them in its hands waits until the segment is found unhealthy (`healthy_check_timeout_ms`); the
watchdog was 380 ms late that way. UDP on the same host shares nothing. What the operator has set
of the transport stays as it is, and other middlewares are left alone.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from smallm_ros.share import find_share

CHOSEN = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE',
          'FASTDDS_BUILTIN_TRANSPORTS')
RANGE = 'ROS_AUTOMATIC_DISCOVERY_RANGE'
RECEIVE_BYTES = 4 << 20
"""Of a socket, as far as net.core.rmem_max permits. A cloud of 1 MiB does not fit into the usual
208 KiB: 9 of 80 arrived on a busy machine, with this 77. The XML profile says the same."""


def share_nothing(environment: MutableMapping[str, str]) -> None:
    """Have Fast DDS use UDP alone, in processes that begin with this environment.

    For LOCALHOST rmw_fastrtps adds shared memory by itself, whatever Fast DDS is told (its
    participant.cpp); a profile says the same without.
    """
    if not environment.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp').startswith('rmw_fastrtps'):
        return
    if any(name in environment for name in CHOSEN):
        return
    if environment.get(RANGE) == 'LOCALHOST':
        environment[RANGE] = 'SYSTEM_DEFAULT'
        environment['FASTDDS_DEFAULT_PROFILES_FILE'] = str(
            find_share('config') / 'watchdog_transport.xml')
    else:
        environment['FASTDDS_BUILTIN_TRANSPORTS'] = f'UDPv4?sockets_size={RECEIVE_BYTES}B'


def shares_memory() -> bool:
    """Whether this process has mapped Fast DDS' shared memory."""
    maps = Path('/proc/self/maps').read_text(encoding='utf-8', errors='replace')
    return '/dev/shm/fastdds_' in maps or '/dev/shm/fastrtps_' in maps
