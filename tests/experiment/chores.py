"""Tasks for an engine's workers; a module of its own, so that they needn't import torch."""

import os
import signal
import time


def surroundings():
    """Return the worker's variables, its process, and the signals that it doesn't hear."""
    return dict(os.environ), os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, [])


def square(number, seconds=0.0):
    time.sleep(seconds)
    return number * number


def deadly(number):
    os.kill(os.getpid(), signal.SIGKILL)


def failing(number):
    raise ValueError(f"no {number}")
