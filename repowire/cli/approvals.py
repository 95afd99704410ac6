"""`repowire approvals`: what waits for a person's yes or no, and how to say it.

How a question is shown is in `calls.py`, and watching them in `watch.py`.
"""

import argparse
from typing import Any

from repowire.cli import command as c
from repowire.cli import watch
from repowire.cli.calls import ALLOW, DENY, choice, ended, inline, short, whole
from repowire.errors import Refusal

VERBS = "list|show|answer|watch"
COLOURS = {ALLOW: "green", DENY: "red"}


def main(argv: list[str]) -> int:
    made = c.parser(
        "approvals",
        "Tool calls, and other questions, that wait for you. The first answer of all surfaces wins; silence is a no.",
        "  repowire approvals watch\n  repowire approvals answer pretool-4be0c7d21f96 allow",
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar=VERBS, prog=made.prog)
    example = "  repowire approvals list\n  repowire approvals list --all --json | jq .questions"
    listing = _verb(verbs, "list", "what is open, oldest last", example, show_list)
    listing.add_argument("-a", "--all", action="store_true", help="what was answered or lapsed in the last day too")
    listing.add_argument("-n", "--limit", type=int, default=50, metavar="N", help="at most N (default %(default)s)")
    example = "  repowire approvals show pretool-4be0c7d21f96\n  repowire approvals show ask-30f5a1c7be42 --json"
    _named(_verb(verbs, "show", "one whole, and how it ended", example, show_one))
    example = (
        "  repowire approvals answer pretool-4be0c7d21f96 allow\n"
        "  repowire approvals answer ask-30f5a1c7be42 --text 'after the release'"
    )
    answering = _verb(verbs, "answer", "allow, deny, or choose; exit 1 when another was first", example, answer)
    _named(answering)
    answering.add_argument("option", nargs="?", metavar="OPTION", help="allow, deny, or the id of an option")
    answering.add_argument("--text", metavar="TEXT", help="an answer in words, where words are wanted; - is stdin")
    answering.add_argument("-m", "--message", metavar="TEXT", help="a remark, for the agent to read")
    example = "  repowire approvals watch\n  repowire approvals watch --json | jq -r .question.prompt"
    _verb(
        verbs,
        "watch",
        "each new one as it comes, whole; a key allows (a) or denies (d). In a pipe it only tells",
        example,
        watch.run,
    )
    return c.run(made, argv[1:])


def _verb(verbs: Any, name: str, words: str, example: str, run: c.Run) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(
        name, help=words, description=words[0].upper() + words[1:] + ".", epilog=c.epilog(example), allow_abbrev=False
    )
    c.with_json(made)
    made.set_defaults(run=run)
    return made


def _named(made: argparse.ArgumentParser) -> None:
    made.add_argument("id", metavar="ID", type=c.named, help="as list shows it")


# -- verbs ---------------------------------------------------------------------


def show_list(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        page = daemon.questions(state="all" if args.all else "open", limit=args.limit)
    if args.json:
        c.put(c.to_json(page))
        return c.OK
    found = page["questions"]
    if not found:
        c.note("nothing waits for you")
        return c.OK
    rows = [[one["correlation_id"], inline(one["from_peer"]), ended(one), c.local(one["created_at"]), short(one)]
            for one in found]  # fmt: skip
    c.table(
        ["ID", "FROM", "STATE", "SINCE", "WHAT"],
        rows,
        {2: lambda state: COLOURS.get(state.partition(":")[0], "yellow")},
    )
    c.hint("see one whole with: repowire approvals show ID, answer with: repowire approvals answer ID allow|deny")
    if page["next"]:
        c.hint(f"there are more: repowire approvals list --limit {args.limit * 2}")
    return c.OK


def show_one(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        found = daemon.question(args.id)
    if args.json:
        c.put(c.to_json(found))
    else:
        for line in whole(found, c.screen()[0]):
            c.put(line)
        c.put(c.colour(ended(found), "bold"))
    return c.OK


def answer(args: argparse.Namespace) -> int:
    if (args.option is None) == (args.text is None):
        c.fail("give an option (allow, deny, …), or --text", c.USAGE)
    text = None if args.text is None else c.text_of(args.text)
    with c.client() as daemon:
        try:
            offered = [option["id"] for option in daemon.question(args.id)["options"]]
        except Refusal as no:
            if no.status != 404:
                raise
            offered = [args.option]  # it may be an ask's question, which /answer knows
        said = choice(args.option, offered) if args.option is not None else {"text": text}
        try:
            told = daemon.answer(args.id, **said, message=args.message, surface="cli")
        except Refusal as no:
            if args.json and "winner" in no.facts:
                c.put(c.to_json(no.as_json()["detail"]))
            raise
    if args.json:
        c.put(c.to_json(told))
    else:
        c.note(f"answered {args.id}: {args.option or 'in words'}")
    return c.OK
