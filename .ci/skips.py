"""Count what a pytest run did, from its JUnit report; fail when something was skipped that is not allowed to be.

skips.py REPORT [ALLOWED ...]      an ALLOWED is `file::name`, without the parameters
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def main(report: str, *allowed: str) -> int:
    if not Path(report).exists():
        print(f"no report at {report}: the tests did not run")
        return 1
    ran: Counter[str] = Counter()
    surprising = 0
    for case in ElementTree.parse(report).iter("testcase"):
        module, test = case.get("classname") or "", (case.get("name") or "").partition("[")[0]
        if not module:  # a whole module was skipped, and its name stands where the test's would
            module, test = test, "*"
        file = module.replace(".", "/") + ".py"
        name = f"{file}::{test}"
        skip = case.find("skipped")
        if skip is None:
            ran["live" if "/live/" in file else "the rest"] += 1
            continue
        permitted = name in allowed
        surprising += not permitted
        print(f"{'allowed' if permitted else 'NOT ALLOWED'}: {name}: {skip.get('message')}")
    print(f"ran {sum(ran.values())} tests ({', '.join(f'{count} {where}' for where, count in ran.items()) or 'none'})")
    print(f"skipped where it counts: {surprising}")
    if not ran["live"]:
        print("no test of tests/live ran")
    return 0 if ran["live"] and not surprising else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
