"""`make bench`: run the shared load generator against our daemon and say which bars are met.

    run.py [--meshbench PATH] [--rounds N] [--scale X] [--out FOLDER] [--only PART,PART]

Four parts, each a run of its own whose ratios are taken within that run: `mesh` (start, ask, notify on open TCP),
`token` (notify with the token on), `start` (cold start to the first durable 2xx) and `cli` (procbench).
Exit 0 when every bar is met, 1 when one is missed, 2 when a part could not run.
"""

import argparse
import asyncio
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
REPOWIRE = Path(sys.executable).parent / "repowire"
DAEMON = f"{shlex.quote(str(REPOWIRE))} daemon --host 127.0.0.1 --port {{port}}"
DEFAULT_HARNESS = HERE.parent / ".." / "shared" / "tools" / "bench" / "meshbench.py"
OURS = "a"  # what the harness calls the system under test


class Bar(NamedTuple):
    """One figure of ours against the same figure of a floor, or against a plain number when `floor` is None."""

    group: str
    figure: str
    floor: str | None
    limit: float
    at_least: bool = False


MESH_BARS = (
    Bar("ask", "ask_rtt_p50_ms", "floor-full", 1.6),
    Bar("ask", "ask_rtt_p99_ms", "floor-full", 3.0),
    Bar("ask", "ask_32_pairs_rps", "floor-normal", 0.6, at_least=True),
    Bar("notify", "notify_oneway_p50_ms", "floor-full", 1.6),
    Bar("notify", "notify_cpu_ms", "floor-full", 1.8),
    Bar("notify", "notify_32_rps", "floor-normal", 0.6, at_least=True),
    Bar("notify", "notify_post_receipt_late_p50_ms", "floor-full", 3.0),
    Bar("notify", "notify_post_receipt_never_p50_ms", "floor-full", 3.0),
    Bar("list", "list_1000_p50_ms", "floor-mem", 0.6),
    Bar("start", "cold_start_ms", "floor-mem", 1.5),
    Bar("start", "idle_rss_mb", None, 50.0),
)
TOKEN_BARS = tuple(bar for bar in MESH_BARS if bar.group == "notify")
START_BARS = (Bar("start", "first_durable_ms", "floor-mem", 1.5),)
CLI_BARS = (
    Bar("cli", "cli_version_wall_ms", "python -c pass", 2.2),
    Bar("cli", "cli_peer_list_wall_ms", "python -c pass", 5.0),
)


# -- judging -------------------------------------------------------------------


def median(report: dict[str, Any], group: str, figure: str, system: str) -> float | None:
    values = report["results"].get(group, {}).get(figure, {}).get(system)
    return statistics.median(values) if values else None


def base(report: dict[str, Any], bar: Bar) -> float | None:
    """The floor's figure. procbench keeps its floors apart, under the name of the command."""
    if bar.floor is None:
        return 1.0
    if bar.group == "cli":
        return median(report, "floors", "process_" + "_".join(bar.figure.split("_")[-2:]), bar.floor)
    return median(report, bar.group, bar.figure, bar.floor)


def judge(title: str, report: dict[str, Any], bars: tuple[Bar, ...]) -> bool:
    """Print a line for each bar; whether all are met. An absent figure is not met."""
    print(f"\n{title}")
    met = True
    for bar in bars:
        ours, floor = median(report, bar.group, bar.figure, OURS), base(report, bar)
        sign = ">=" if bar.at_least else "<="
        if ours is None or not floor:
            print(f"  MISSING  {bar.figure}: {report['absent'].get(bar.group) or report['absent']}")
            met = False
            continue
        ratio = ours / floor
        good = ratio >= bar.limit if bar.at_least else ratio <= bar.limit
        against = f"{ratio:6.2f}x {bar.floor} ({floor:.4g})" if bar.floor else f"{ours:6.1f}"
        unit = "x" if bar.floor else ""
        print(
            f"  {'pass' if good else 'FAIL'}  {bar.figure:<34} {ours:9.4g}  {against}, bar {sign} {bar.limit:g}{unit}"
        )
        met = met and good
    return met


# -- the parts -----------------------------------------------------------------


def harness_run(command: list[str], out: Path) -> dict[str, Any]:
    """Run a generator to its end and read the JSON that it wrote."""
    out.unlink(missing_ok=True)
    print(f"\n$ {shlex.join(command)}", flush=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    if done.returncode or not out.exists():
        sys.exit(f"the generator failed with {done.returncode}; what it said stands above")
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def mesh(options: argparse.Namespace) -> bool:
    out = options.out / "meshbench.json"
    command = [sys.executable, str(options.meshbench), "--scenario", "start,list,ask,notify", *common(options, out, "")]
    return judge("Open TCP, within one run:", harness_run(command, out), MESH_BARS)


def token(options: argparse.Namespace) -> bool:
    out = options.out / "meshbench-token.json"
    secret = "bench-" + os.urandom(8).hex()
    command = [sys.executable, str(HERE / "with_token.py"), str(options.meshbench), secret, "--scenario", "notify"]
    report = harness_run([*command, *common(options, out, secret)], out)
    return judge("Notify with the token on, within one run:", report, TOKEN_BARS)


def common(options: argparse.Namespace, out: Path, secret: str) -> list[str]:
    environ = ["--env-a", f"REPOWIRE_DAEMON__AUTH_TOKEN={secret}"]
    scale = ["--rounds", str(options.rounds), "--scale", str(options.scale)]
    return ["--a", DAEMON, "--label-a", "repowire", *environ, *scale, "--json", str(out)]


def start(options: argparse.Namespace) -> bool:
    report = asyncio.run(first_writes(options))
    (options.out / "start.json").write_text(json.dumps(report, indent=1))
    return judge("Cold start, ours to the first durable 2xx, the floor's to /health:", report, START_BARS)


async def first_writes(options: argparse.Namespace) -> dict[str, Any]:
    """Start ours and the floor in turn, each in an empty home, with the harness's own daemon and client."""
    sys.path.insert(0, str(options.meshbench.parent))
    import meshbench as harness

    floor = shlex.join([sys.executable, str(options.meshbench), "floor"]) + " --port {port} --home {home} --store mem"
    ours = harness.System(OURS, "repowire", DAEMON, {"REPOWIRE_DAEMON__AUTH_TOKEN": ""})
    figures: dict[str, list[float]] = {OURS: [], "floor-mem": []}
    for _ in range(3 * options.rounds):
        for system in (ours, harness.System("floor-mem", "floor-mem", floor)):
            context = harness.Ctx(system, options.out, harness.Record(), 1.0, argparse.Namespace(keep=False), {})
            async with context.daemon() as daemon:
                began = harness.now()
                if system is ours:
                    await daemon.http.json("POST", "/peers", harness.peer_body("first"))
                figures[system.key].append((daemon.start_s + harness.now() - began) * 1e3)
    return {"results": {"start": {"first_durable_ms": figures}}, "absent": {}}


def cli(options: argparse.Namespace) -> bool:
    out = options.out / "procbench.json"
    command = [sys.executable, str(options.meshbench.parent / "procbench.py"), "--a-cli", str(REPOWIRE)]
    command += [
        "--a-daemon",
        f"env REPOWIRE_DAEMON__AUTH_TOKEN= {DAEMON}",
        "--label-a",
        "repowire",
        "--rounds",
        str(options.rounds),
        "--json",
        str(out),
    ]
    return judge("The command line, against an interpreter that does nothing:", harness_run(command, out), CLI_BARS)


PARTS: dict[str, Callable[[argparse.Namespace], bool]] = {"mesh": mesh, "token": token, "start": start, "cli": cli}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare our daemon with the floors of the shared load generator.")
    harness = Path(os.environ.get("MESHBENCH") or DEFAULT_HARNESS)
    parser.add_argument("--meshbench", type=Path, default=harness, help="meshbench.py (or the variable MESHBENCH)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts; 0.1 for a smoke run")
    parser.add_argument("--out", type=Path, default=HERE.parent / ".reports" / "bench", help="where the JSON goes")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run: " + ", ".join(PARTS))
    options = parser.parse_args()
    options.meshbench, options.out = options.meshbench.resolve(), options.out.resolve()
    if not options.meshbench.is_file():
        print(f"there is no load generator at {options.meshbench}; say where with MESHBENCH=/path/to/meshbench.py")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    met = [PARTS[part](options) for part in options.only.split(",")]
    print(f"\n{'every bar is met' if all(met) else 'NOT every bar is met'}; the figures are in {options.out}")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
