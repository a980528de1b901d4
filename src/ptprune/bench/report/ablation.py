"""What each part of ptp is worth: its variants against it."""

from __future__ import annotations

from ptprune.bench.candidates import DOWNSAMPLE, PTP, RANDOM
from ptprune.bench.report.accuracy import left_out, subject, title
from ptprune.bench.report.comparison import claims, differences, gains, in_words
from ptprune.bench.report.lines import Lines, default_settings, differing
from ptprune.results.rows import AccuracyResults
from ptprune.results.table import escape


def section(results: AccuracyResults) -> list[str]:
    """The blocks about one file that compares variants of ptp."""
    rows = Lines(results)
    ptp = rows.variant(PTP)
    base = next(iter(ptp.values())).settings if ptp else default_settings(PTP)
    same = [name for name, line in rows.variants().items() if line == ptp]
    variants = {name: line for name, line in rows.variants().items() if name not in same}
    settings = in_words(differing(base, default_settings(PTP))) or "its default settings"
    names = f" ({escape(', '.join(same))})" if same else ""
    baselines = {name: line for name, line in rows.with_defaults().items() if name in (RANDOM, DOWNSAMPLE)}
    compared = gains({**variants, **baselines}, ptp)
    of_variants = {name: line for name, line in compared.items() if name in variants}
    blocks = [
        f"### {escape(title(results))}",
        subject(results, rows),
        f"ptp here has {settings}{names}; a variant changes what its name says, and nothing else.",
        differences({**variants, **baselines}, compared, ptp),
        "\n".join(claims(of_variants, "variant")),
        "" if rows.compares_methods else left_out(rows),
    ]
    return [block for block in blocks if block]
