"""Write `docs/lifecycle.md` from `agent/deployment/lifecycle.py`: `python docs/generate_lifecycle.py` (`--check`:
compare)."""

import ast
import inspect
import sys
from enum import Enum
from pathlib import Path

from agent.deployment import lifecycle
from agent.deployment.lifecycle import MAX_ATTEMPTS, TABLE, Effect, Kind, Phase, PhaseRule, Resume, Row

PAGE = Path(__file__).with_name("lifecycle.md")
# drawn once, in words below the diagram: from almost everywhere, so that their arrows would hide the story
EVERYWHERE = (Kind.ASSIGN, Kind.DENY, Kind.CORRUPTED, Kind.CRASHED)


def page() -> str:
    """Return the whole page."""
    lines = [
        "# The device's lifecycle",
        "",
        "Generated from the table in `agent/deployment/lifecycle.py` by `make protocol`; a test compares. The runner",
        "saves a phase before it acts, and every effect may be repeated, so a device that loses its power anywhere",
        "wakes up in a phase of this page and goes on by its resume rule. One that wakes up on a disk that refuses",
        "writes stays in its phase and runs the last good artifact until the disk is mended ([device.md](device.md)).",
        "",
        "```mermaid",
        *diagram(),
        "```",
        "",
        f"An event marked *n of {MAX_ATTEMPTS}* is counted for a deployment; the last one leads elsewhere. After",
        f"`{Kind.ROLLED_BACK.value}` comes `{Phase.ASSIGNED.value}` where another assignment is waiting for it.",
        "Some events are not drawn, because they lead away from almost everywhere:",
        "",
        *(f"- `{kind.value}`: {_where(kind)}" for kind in EVERYWHERE),
        "",
        "## The table",
        "",
        "| phase | meaning | effect on entering | woken up in it | events |",
        "| --- | --- | --- | --- | --- |",
        *(line(phase, TABLE[phase]) for phase in Phase),
        *words("Events", Kind),
        *words("Effects", Effect),
        *words("Resume rules", Resume),
    ]
    return "\n".join(lines) + "\n"


def diagram() -> list[str]:
    """Return the phases and their events as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.IDLE.value}"]
    for phase, rule in TABLE.items():
        drawn: dict[tuple[str, str], list[str]] = {}
        for kind, row in rule.on.items():
            if kind in EVERYWHERE and not (phase is Phase.IDLE and kind is Kind.ASSIGN):
                continue
            counted = f" (n of {MAX_ATTEMPTS})" if row.counted else ""
            drawn.setdefault((phase.value, row.to.value), []).append(f"{kind.value}{counted}")
            if row.counted:
                drawn.setdefault((phase.value, row.spent.value), []).append(f"{kind.value}, the last")
        lines += [f"    {before} --> {after}: {', '.join(kinds)}" for (before, after), kinds in drawn.items()]
    return lines


def line(phase: Phase, rule: PhaseRule) -> str:
    """Return a phase's row of the table."""
    woken = rule.resume.value
    if rule.resume is Resume.RETRY:
        woken += f"; the last of {MAX_ATTEMPTS} leads to `{rule.spent.value}`"
    events = "<br>".join(map(_event, rule.on.items()))
    return f"| `{phase.value}` | {meanings(Phase)[phase.name]} | `{rule.effect.value}` | {woken} | {events} |"


def words(title: str, kind: type[Enum]) -> list[str]:
    """Return a section with one line for each member that says more than its name."""
    said = meanings(kind)
    return ["", f"## {title}", "", *(f"- `{each.value}`: {said[each.name]}" for each in kind if said.get(each.name))]


def meanings(kind: type[Enum]) -> dict[str, str]:
    """Return what the comments beside the members of an enum in `agent/deployment/lifecycle.py` say."""
    source = inspect.getsource(lifecycle).splitlines()
    tree = ast.parse("\n".join(source))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
            for each in node.body:
                if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
                    found[each.targets[0].id] = source[each.lineno - 1].partition("#")[2].strip()
    return found


def _event(item: tuple[Kind, Row]) -> str:
    kind, row = item
    counted = f", counted; the last to `{row.spent.value}`" if row.counted else ""
    return f"`{kind.value}` to `{row.to.value}`{counted}"


def _where(kind: Kind) -> str:
    """Say where an event leads to from which phases, and where it is out of place."""
    ends: dict[Phase, list[str]] = {}
    for phase, rule in TABLE.items():
        if kind in rule.on:
            ends.setdefault(rule.on[kind].to, []).append(f"`{phase.value}`")
    absent = [f"`{phase.value}`" for phase, rule in TABLE.items() if kind not in rule.on]
    told = "; ".join(f"to `{to.value}` from {', '.join(phases)}" for to, phases in ends.items())
    return told + (f"; out of place in {', '.join(absent)}" if absent else "")


def main() -> int:
    """Write the page, or with `--check` say whether it is what the table says."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
