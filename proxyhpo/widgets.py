"""Controls for a notebook: look through recorded rows, and run a small experiment.

What is shown are pictures and tables in plain widgets, so that a page is never blank while
something is drawn, and JupyterLab, Voila and Colab show the same.
"""

from proxyhpo.explorer import Explorer
from proxyhpo.study_panel import StudyPanel

__all__ = ["Explorer", "StudyPanel"]
