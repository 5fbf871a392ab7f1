"""The specification by example. One thread per process, whatever the environment sets: several run side by side."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
