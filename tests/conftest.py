import os

# Before torch is imported: tests share a small machine with the kernels that some of them start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
