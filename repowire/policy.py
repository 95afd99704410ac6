"""Policy: which tools of an agent wait for a person, and which calls a rule of the config lets through.

Pure: the config in, a ruling out. What no rule lets through is asked, and what nobody answers is denied; a config can
ask more or less often, it can never make silence an answer. How a pattern matches, and what it can never match, is in
docs/approvals.md: in a shell's words one letter too many is another command.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from repowire.config import Config, ConfigError, place_of
from repowire.settings import Approvals

READ_ONLY = frozenset({"Read", "Glob", "Grep", "LS"})  # never wait, whatever a pattern says (wire.md 10.1)

# What a `*` of an argument's pattern may stand for, and all that a value with one may hold: nothing that a shell could
# take for more than a word. Quotes, $, `, ;, &, |, <, >, brackets, ~, #, \\ and line ends are not among it.
PLAIN = re.compile(r"[A-Za-z0-9 _\-./:=,@%+]*")
# A name that begins with a dot, also right behind an option's letter: the settings of agents, of git and of shells have
# such names, and whoever writes one runs what he likes, unasked
DOTTED = re.compile(r"(?:(?<![A-Za-z0-9_*])|(?<=\s-[A-Za-z]))\.(?=[A-Za-z0-9_-])")
SHELL_TOOL = "Bash"
# Arguments of the shell's tool that a rule need not name, since they change nothing of what is done
HARMLESS = frozenset({"description", "timeout", "run_in_background"})

Json = dict[str, Any]


class Rule(NamedTuple):
    """An allow-rule, and where in the config it stands: that is what the record calls it."""

    place: str
    tool: str
    arguments: Mapping[str, str]
    other_arguments: bool = False  # arguments that are not named may be anything

    def allows(self, tool: str, given: Json) -> bool:
        """Whether this call may go ahead unasked: the tool fits, and every argument is named and fits."""
        if not _glob(self.tool, tool):
            return False
        unnamed = given.keys() - self.arguments.keys() - (HARMLESS if self.tool == tool == SHELL_TOOL else set())
        if (unnamed and not self.other_arguments) or not self.arguments.keys() <= given.keys():
            return False
        return all(fits(pattern, given[name]) for name, pattern in self.arguments.items())


class Ruling(NamedTuple):
    """What the policy says of one call: whether a person is to be asked, or which rule lets it through."""

    gated: bool
    rule: str | None = None
    hold_open: bool = False


# -- matching ----------------------------------------------------------------


def fits(pattern: str, value: object) -> bool:
    """Whether an argument is a text that is what a pattern says; without a `*` the whole of it, letter for letter.

    With one, the value must be made of plain letters only (see PLAIN), and name no parent folder, nor what begins with
    a dot save what the pattern itself names.
    """
    if not isinstance(value, str):
        return False
    if "*" not in pattern:
        return value == pattern
    if PLAIN.fullmatch(value) is None or ".." in value:
        return False
    if len(DOTTED.findall(value)) > len(DOTTED.findall(pattern)):
        return False
    return _glob(pattern, value)


def _glob(pattern: str, text: str) -> bool:
    """`*` is any run of letters, all else itself. Linear: no pattern can keep the daemon busy."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


# -- rules -------------------------------------------------------------------


def check(config: Config) -> None:
    """Raise ConfigError for an allow-rule that lets through nothing, or more than it seems to."""
    places = {"approvals": config.approvals, **_named(config.approvals)}
    for place, section in places.items():
        where = place_of(config, "approvals", "allow" if place == "approvals" else place.split(".")[1])
        for rule in _rules(section.allow or (), place):
            if not rule.arguments and not rule.other_arguments:
                raise ConfigError(
                    f"{where}: {rule.place}: names no argument: name one, or other_arguments = true for any call of"
                    f" {rule.tool}"
                )
            for name, pattern in rule.arguments.items():
                literal = pattern.replace("*", "")
                if "*" in pattern and (PLAIN.fullmatch(literal) is None or ".." in literal):
                    raise ConfigError(
                        f"{where}: {rule.place}: {name} = {pattern!r} can never match: with a * only letters, digits"
                        " and space _ - . / : = , @ % + can, and no `..`; without a * it is the whole value"
                    )


def ruling(config: Config, tool: str, given: Json | None, *, names: tuple[str, ...], circle: str | None) -> Ruling:
    """What holds for a call of a peer known by these names, its id first, in that circle.

    The table of its id wins over the common one, key by key. An agent can choose its name and its circle, so their
    tables only tighten: what any of them gates waits, and a rule lets through only what a rule of each lets through.
    `given` are the whole arguments; None where they are not known, and then no rule lets the call through.
    """
    policy = config.approvals
    if tool in READ_ONLY:
        return Ruling(gated=False)
    own: list[tuple[str, Any]] = [(f"approvals.peers.{one}", policy.peers[one]) for one in names if one in policy.peers]
    chosen = own if not names or names[0] not in policy.peers else own[1:]
    floor = [*own[: len(own) - len(chosen)], ("approvals", policy)]
    if circle is not None and circle in policy.circles:
        chosen.append((f"approvals.circles.{circle}", policy.circles[circle]))
    every = [_ruled([one, *floor], tool, given) for one in chosen] + [_ruled(floor, tool, given)]
    strict = [one for one in every if one.gated]
    if not strict:
        return Ruling(gated=False)
    hold = next(one.hold_open for _, one in [*chosen, *floor] if one.hold_open is not None)
    rule = strict[0].rule if all(one.rule is not None for one in strict) else None
    return Ruling(gated=True, rule=rule, hold_open=hold)


def _ruled(sections: list[tuple[str, Any]], tool: str, given: Json | None) -> Ruling:
    """What some tables say, the first wins key by key; of how long it waits nothing."""
    gated = next(one.gated_tools for _, one in sections if one.gated_tools is not None)
    if tool and not any(_glob(pattern, tool) for pattern in gated):
        return Ruling(gated=False)
    place, allow = next((place, one.allow) for place, one in sections if one.allow is not None)
    rules = [] if given is None else _rules(allow, place)
    return Ruling(gated=True, rule=next((rule.place for rule in rules if rule.allows(tool, given or {})), None))


def _rules(allow: tuple[Json, ...], place: str) -> list[Rule]:
    return [
        Rule(f"{place}.allow[{number}]", one["tool"], one.get("arguments", {}), one.get("other_arguments", False))
        for number, one in enumerate(allow)
    ]


def _named(policy: Approvals) -> dict[str, Any]:
    circles = {f"approvals.circles.{name}": one for name, one in policy.circles.items()}
    return circles | {f"approvals.peers.{name}": one for name, one in policy.peers.items()}
