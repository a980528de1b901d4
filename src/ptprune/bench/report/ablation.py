"""What each part of ptp is worth: its variants against it."""

from __future__ import annotations

from ptprune.bench.accuracy import DOWNSAMPLE, PTP, RANDOM
from ptprune.bench.report.accuracy import left_out, subject, title
from ptprune.bench.report.comparison import claims, differences, gains, settings_told
from ptprune.bench.report.documents import Document
from ptprune.bench.report.markdown import escape
from ptprune.bench.report.rows import Rows, default_settings, differing


def section(document: Document) -> list[str]:
    """The blocks about one document that compares variants of ptp."""
    rows = Rows(document)
    base = rows.base()
    ptp = rows.ptp(base)
    same = [name for name, line in rows.variants().items() if line == ptp]
    variants = {name: line for name, line in rows.variants().items() if name not in same}
    settings = settings_told(differing(base, default_settings(PTP))) or "its default settings"
    names = f" ({escape(', '.join(same))})" if same else ""
    baselines = {name: line for name, line in rows.with_defaults().items() if name in (RANDOM, DOWNSAMPLE)}
    compared = gains({**variants, **baselines}, ptp)
    of_variants = {name: line for name, line in compared.items() if name in variants}
    blocks = [
        f"### {escape(title(document))}",
        subject(document, rows),
        f"ptp here has {settings}{names}; a variant changes what its name says, and nothing else.",
        differences({**variants, **baselines}, compared, ptp),
        "\n".join(claims(of_variants, "variant")),
        "" if rows.compares_methods else left_out(rows),
    ]
    return [block for block in blocks if block]
