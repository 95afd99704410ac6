"""Run the demo and put what it printed into README.md, between its two marks."""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- demo -->\n", "<!-- /demo -->"


def main() -> int:
    played = subprocess.run([sys.executable, str(HERE / "demo.py")], capture_output=True, text=True, check=False)
    if played.returncode:
        print(played.stdout + played.stderr, file=sys.stderr)
        return played.returncode
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    said = played.stdout.replace(str(HERE.parents[1]), "~/repowire")  # not where it was recorded
    said = re.sub(r"\S*/rwdemo\w+", "$TMPDIR/rwdemo", said)
    lines = "\n".join(line.rstrip() for line in said.strip().splitlines())
    README.write_text(f"{before}{BEGIN}```text\n$ make demo\n{lines}\n```\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
