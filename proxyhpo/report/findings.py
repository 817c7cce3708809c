"""What a table of RESULTS.md shows, in the sentence above it: evidence -> words."""

from __future__ import annotations

from collections import Counter

from proxyhpo.analysis.bootstrap import LEVEL
from proxyhpo.analysis.claims import outcome
from proxyhpo.analysis.evidence import Evidence
from proxyhpo.analysis.quality import HALF_POINT
from proxyhpo.report.markdown import span
from proxyhpo.report.style import table_label
from proxyhpo.report.tables import NOT_REPLAYED, NOT_TIMED, live_studies

TOLD_APART = 0.5
"""ICC above which more of the variance lies between configurations than between weight seeds."""
ROUNDED = 0.05
"""Points of accuracy below which a difference is shown as none."""


def held(evidence: Evidence) -> str:
    """Return which claims hold together, and what decides alone."""
    if evidence.claims.empty:
        return NOT_TIMED
    level = f"{100 * LEVEL:.0f} %"
    return (
        f"The {len(evidence.claims)} claims of this list hold together at {level}, so their "
        "intervals are wider than those of the four answers, which share their level among "
        'themselves. Tables elsewhere on this page that decide ("times sooner", "points behind", '
        f'"corrected") do so at {level} each; the answers by network share a level of their own. '
        "That against other searches takes the level of this list and isn't counted in it."
    )


def informative(evidence: Evidence) -> str:
    """Return on how many tables one training tells configurations apart."""
    icc = evidence.gates["icc"].astype(float)
    known = icc.dropna()
    if known.empty:
        return "Not known yet: N_B has one weight seed on each table."
    apart, alike = known[known > TOLD_APART], known[known <= TOLD_APART]
    least = f" (ICC {apart.min():.2f} or more)" if len(apart) else ""
    rest = "; ".join(f"{table_label(name)} ({one:.2f})" for name, one in alike.items())
    return (
        f"{'Mostly' if len(apart) > len(alike) else 'Hardly'}: one training tells configurations "
        f"apart{least} on {len(apart)} of {len(known)} tables{f', not on {rest}' * bool(rest)}."
    )


def reported(evidence: Evidence) -> str:
    """Return by how much the corrected protocol reports something else than is true, and why."""
    if evidence.switches.empty:
        return NOT_REPLAYED
    wide = evidence.switches.pivot_table("optimism", "table", "switch", sort=False)
    own, tested = wide["corrected"], wide["chosen on the test split"]
    means = [f"{one.abs().mean():.1f}" for one in (own, tested)]
    return (
        f"The corrected protocol reports less than is true on {(own < 0).sum()} of {len(own)} "
        f"tables (its optimism is {span(own, '+.1f')} points). It reports on validation pictures, "
        "what is true is of test pictures, which may be harder or easier. Chosen and verified on "
        f"the test split, a search reports {means[1]} points more or less than is true on average, "
        f"instead of {means[0]}. What makes the rest isn't known."
    )


def behind(evidence: Evidence) -> str:
    """Return how often the way of ``tune``'s method is behind the best other way in hindsight."""
    lines = evidence.behind.to_dict("records")
    if not lines:
        return NOT_REPLAYED
    found = Counter(outcome(one["low"], one["high"], HALF_POINT) for one in lines)
    further = sum(one["points"] > HALF_POINT for one in lines)
    return (
        f"On {evidence.behind['table'].nunique()} tables, after a quarter, half and all of a full "
        "search's time, it is held against the other way that has lost least by then, chosen in "
        f"hindsight. More than {HALF_POINT:g} points behind it is by the estimate in {further} of "
        f"{len(lines)} cases; that is shown in {found['yes']} and refuted in {found['no']}."
    )


def live_apart(evidence: Evidence) -> str:
    """Return in which live studies the trainings differ, though all configurations are alike."""
    said = ["Live less replay: over the same configurations."]
    for (table, _, _), own in live_studies(evidence):
        apart = 100 * (own["accuracy_live"] - own["accuracy_replay"])
        if own["same"].all() and (apart.abs() >= ROUNDED).any():
            most = apart.abs().idxmax()
            said.append(
                f"On {table_label(table)} all configurations are the same: there the trainings "
                f"themselves differ, most at learning rate {own.loc[most, 'lr_live']:.2g} "
                f"({apart[most]:+.1f} points)."
            )
    return " ".join(said)
