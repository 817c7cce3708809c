"""A certificate as a figure: a few configurations on the stand-in and on N_B, and the noise."""

from __future__ import annotations

import math

import matplotlib as mpl
from matplotlib.figure import Figure

from proxyhpo.analysis.certificate import Certificate
from proxyhpo.config import InputError
from proxyhpo.report.style import BASE, GREY, STYLE, Picture, label, look


def certificate_figure(certificate: Certificate | None) -> Figure:
    """Return the configurations' scores on N_B by those on the stand-in, with the noise band.

    Raises:
        InputError: there is no certificate, or no configuration ran to the end on both.
    """
    if certificate is None:
        raise InputError(
            "no certificate: the search was too short to earn one back; Settings(certify=4) asks "
            "for one in any case"
        )
    if not certificate.n:
        raise InputError("no configuration ran to the end on both: there is nothing to draw")
    unit = 100 if certificate.accuracy else 1
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(4.6, 3.3), layout="constrained")
        axes = figure.subplots()
        best = unit * max(certificate.base)
        band = {"color": BASE, "alpha": 0.15, "lw": 0, "label": "as good as N_B's best"}
        axes.axhspan(best - unit * certificate.equal, best, **band)
        colour, marker = look(certificate.stand_in)
        noise = 0.0 if math.isnan(certificate.noise) else unit * certificate.noise
        x, y = ([unit * value for value in s] for s in (certificate.other, certificate.base))
        bars = {"fmt": marker, "color": colour, "ecolor": GREY, "lw": 1}
        axes.errorbar(x, y, noise, **bars, label="a configuration, and the noise of its weights")
        kind = "validation accuracy, %" if certificate.accuracy else "score"
        axes.set(xlabel=f"{label(certificate.stand_in)}: {kind}", ylabel=f"N_B: {kind}")
        figure.legend(loc="outside lower center")
        known = f"{certificate.n} configurations can't bound the rank correlation"
        if certificate.bounded:
            known = certificate.agreement
        share = f"a trial takes {100 * certificate.share:.0f} % of N_B's time"
        figure.suptitle(f"{certificate.verdict}: {share},\n{known}")
    return figure
