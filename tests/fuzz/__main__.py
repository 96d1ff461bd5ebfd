"""The fuzzers for long: `python -m tests.fuzz --examples 100000`, or `make fuzz`."""

from __future__ import annotations

import argparse
import sys
import time
import warnings

from tests.fuzz.families import FAMILIES
from tests.fuzz.test_fuzz import fuzz


def main() -> int:
    """Run them all and print a line a family; what fails ends it with the smallest message."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--examples', type=int, default=100_000,
                        help='in all (default: %(default)s)')
    parser.add_argument('--only', choices=FAMILIES, help='one family')
    args = parser.parse_args()
    warnings.simplefilter('error')
    kinds = [args.only] if args.only else list(FAMILIES)
    each = -(-args.examples // len(kinds))
    whole = [0, 0]
    for number, kind in enumerate(kinds, 1):
        began_s = time.monotonic()
        tried, taken = fuzz(kind, each)
        whole = [whole[0] + tried, whole[1] + taken]
        print(f'{number:3} of {len(kinds)}: {kind:45} {taken:7} worded, {tried - taken:7} dropped '
              f'by name, {time.monotonic() - began_s:5.0f} s', flush=True)
    print(f'{whole[0]} messages: {whole[1]} worded, {whole[0] - whole[1]} dropped by name, none '
          'did anything else')
    return 0


if __name__ == '__main__':
    sys.exit(main())
