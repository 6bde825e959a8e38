"""Check the bars of the bundled demo on a finished run: `python tools/check_demo.py runs/demo`.

Quality bars fail the check; the time bar is printed only, since machines differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BARS = {"miou_things": 0.85, "psnr_test": 26.5}
SECONDS, BYTES = 120.0, 4e9


def main(run: Path) -> int:
    """Print each bar beside what was measured; return 1 if a quality or memory bar is missed."""
    stats = json.loads((run / "stats.json").read_text())
    missed = 0
    for name, bar in BARS.items():
        missed += stats[name] < bar
        print(f"{name:<15} {stats[name]:>10.3f}   at least {bar}")
    missed += stats["peak_rss_bytes"] > BYTES
    print(f"{'peak_rss_bytes':<15} {stats['peak_rss_bytes']:>10.3g}   at most {BYTES:.3g}")
    print(f"{'seconds':<15} {sum(stats['seconds'].values()):>10.1f}   at most {SECONDS} on two idle cores")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
