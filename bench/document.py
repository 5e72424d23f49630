"""docs/benchmarks.md: each benchmark writes its own section and leaves the others as they are."""

from __future__ import annotations

from bench.task import PROJECT

DOCUMENT = PROJECT / "docs" / "benchmarks.md"
HEAD = "# Benchmarks\n\nWritten by scripts, not by hand; `make bench` makes it anew.\n"


def with_section(document: str, name: str, text: str) -> str:
    """Return the document with this text as the section ``name``, in its old place or else at the end."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    section = f"{begin}\n{text.strip()}\n\n{end}"
    before, found, behind = (document or HEAD).partition(begin)
    if not found:
        return f"{before.rstrip()}\n\n{section}"
    return before + section + behind.partition(end)[2]


def write_section(name: str, text: str) -> None:
    """Put the section into docs/benchmarks.md."""
    document = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    DOCUMENT.write_text(with_section(document, name, text), encoding="utf-8")
    print(f"Written to {DOCUMENT.relative_to(PROJECT)}.")
