"""Trace the requirements in docs/requirements.toml to tests, and tests to their last results.

Exit code 1 when a requirement has no test, names one that does not exist, or, with results, has one
that failed or did not run.
"""

from __future__ import annotations

import argparse
import ast
import csv
import html
import io
import sys
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
STATES = ("failed", "not run", "skipped", "passed")
"""From the worst on; a selector with several tests has the worst of their states, except that
skipped ones count only where nothing else ran."""
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; color: #222 }
table { border-collapse: collapse; width: 100%; table-layout: fixed }
th:first-child { width: 6.5em } th:nth-child(2) { width: 36% } th:last-child { width: 5em }
th, td { text-align: left; vertical-align: top; padding: .4em .6em; border-bottom: 1px solid #ddd }
td:first-child, td:last-child { white-space: nowrap }
code { font-size: 12px; overflow-wrap: anywhere }
.passed { color: #1a7f37 } .failed { color: #b00020; font-weight: bold }
.skipped, .not-run { color: #946200 }
"""


@dataclass
class Requirement:
    """One line of the trace."""

    id: str
    text: str
    tests: list[str]
    results: dict[str, Counter[str]] = field(default_factory=dict)
    """Selector -> state -> number of tests."""

    def state(self) -> str:
        """The worst state of the requirement's selectors."""
        return min((worst(counts) for counts in self.results.values()), key=STATES.index)


def worst(counts: Counter[str]) -> str:
    """The state of a selector with such results."""
    if not counts:
        return "not run"
    if counts["failed"]:
        return "failed"
    return "passed" if counts["passed"] else "skipped"


def read_requirements(path: Path) -> list[Requirement]:
    """The requirements of a TOML file.

    Raises:
        ValueError: A key is missing or unknown, an identifier stands twice, or there is no test.
    """
    with path.open("rb") as file:
        document: dict[str, Any] = tomllib.load(file)
    found: dict[str, Requirement] = {}
    for item in document.get("requirement", []):
        if set(item) != {"id", "text", "tests"}:
            raise ValueError(f"{item.get('id', '?')}: id, text and tests are needed, nothing else")
        if item["id"] in found:
            raise ValueError(f"{item['id']} stands twice")
        if not item["tests"]:
            raise ValueError(f"{item['id']} names no test")
        found[item["id"]] = Requirement(item["id"], item["text"], list(item["tests"]))
    if not found:
        raise ValueError(f"{path} holds no requirement")
    return list(found.values())


def tests_in(path: Path) -> Iterator[str]:
    """`test_x`, `TestY` and `TestY::test_z` of a test file, read without importing it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            yield node.name
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield node.name
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test"):
                    yield f"{node.name}::{inner.name}"


def missing_tests(requirements: Sequence[Requirement], root: Path) -> list[str]:
    """Lines about selectors that name no test."""
    known: dict[str, set[str]] = {}
    problems = []
    for requirement in requirements:
        for selector in requirement.tests:
            name, _, test = selector.partition("::")
            if name not in known:
                known[name] = set(tests_in(root / name)) if (root / name).is_file() else set()
            if not known[name] or (test and test not in known[name]):
                problems.append(f"{requirement.id}: no test {selector}")
    return problems


def add_results(requirements: Sequence[Requirement], reports: Sequence[Path]) -> None:
    """Read JUnit files of pytest into the requirements; a later file adds to the earlier ones."""
    states: dict[str, Counter[str]] = {}
    for path in reports:
        for case in xml.etree.ElementTree.parse(path).getroot().iter("testcase"):
            name = case.get("name", "").partition("[")[0]
            kinds = {child.tag for child in case}
            state = "passed"
            if kinds & {"failure", "error"}:
                state = "failed"
            elif "skipped" in kinds:
                state = "skipped"
            states.setdefault(f"{case.get('classname')}.{name}", Counter())[state] += 1
    for requirement in requirements:
        for selector in requirement.tests:
            name, _, test = selector.partition("::")
            prefix = ".".join([*Path(name).with_suffix("").parts, *filter(None, test.split("::"))])
            counts: Counter[str] = Counter()
            for full, found in states.items():
                if full == prefix or full.startswith(prefix + "."):
                    counts += found
            requirement.results[selector] = counts


def to_csv(requirements: Sequence[Requirement]) -> str:
    """One row for each requirement and test."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["requirement", "text", "test", "state", *STATES])
    for requirement in requirements:
        for selector, counts in requirement.results.items():
            numbers = [counts[state] for state in STATES]
            row = [requirement.id, requirement.text, selector, worst(counts), *numbers]
            writer.writerow(row)
    return out.getvalue()


def to_html(requirements: Sequence[Requirement]) -> str:
    """A page with a row for each requirement."""
    totals = Counter(requirement.state() for requirement in requirements)
    summary = ", ".join(f"{totals[state]} {state}" for state in reversed(STATES) if totals[state])
    rows = []
    for item in requirements:
        tests = "<br>".join(
            f"<code>{html.escape(selector)}</code> {_numbers(counts)}"
            for selector, counts in item.results.items()
        )
        state = item.state()
        rows.append(
            f"<tr><td>{html.escape(item.id)}</td><td>{html.escape(item.text)}</td><td>{tests}</td>"
            f'<td class="{state.replace(" ", "-")}">{state}</td></tr>'
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>umd-edge: requirements '
        f"and tests</title><style>{_STYLE}</style></head><body><h1>Requirements and tests</h1>"
        f"<p>{len(requirements)} requirements: {summary}.</p><table><thead><tr><th>requirement</th>"
        "<th>text</th><th>tests</th><th>state</th></tr></thead><tbody>"
        + "\n".join(rows)
        + "</tbody></table></body></html>\n"
    )


def _numbers(counts: Counter[str]) -> str:
    shown = ", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])
    return f"({shown})" if shown else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write `requirements.html` and `requirements.csv`, and say what is missing."""
    parser = argparse.ArgumentParser(prog="script/trace", description=__doc__)
    parser.add_argument("--requirements", type=Path, default=ROOT / "docs" / "requirements.toml")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that tests are named from")
    parser.add_argument("--out", type=Path, default=Path("trace"), help="folder to write to")
    parser.add_argument("--junit", type=Path, action="append", default=[], metavar="FILE")
    given = parser.parse_args(arguments)
    try:
        requirements = read_requirements(given.requirements)
        add_results(requirements, given.junit)
    except (OSError, ValueError, xml.etree.ElementTree.ParseError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    problems = missing_tests(requirements, given.root)
    if given.junit:
        problems += [
            f"{item.id}: {item.state()}"
            for item in requirements
            if item.state() in ("failed", "not run")
        ]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "requirements.html").write_text(to_html(requirements), encoding="utf-8")
    (given.out / "requirements.csv").write_text(to_csv(requirements), encoding="utf-8")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
    print(  # noqa: T201
        f"{given.out / 'requirements.html'}: {len(requirements)} requirements, "
        f"{len(problems)} problem(s)"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
