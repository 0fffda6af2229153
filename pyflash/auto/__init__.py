"""What `auto` prefers where: tables of measurements (tables.py), and for each operation what holds where they are silent.

Pure functions of place, size and dtype: never measured at run time, so results do not change from run to run.
"""

SMALL = "small input: torch's own call is cheaper"  # the reason that most operations give for their smallest calls
# Elements from which a call that is bound by memory takes an H200 longer than launching it takes the host: 60 to 110 us of
# ours, 10 to 25 of torch's. Below, a faster kernel of ours waits for its launch.
GPU_ELEMENTS = 1 << 26
MEASURED = "torch's own is as fast or faster here, by this processor's table"
NO_TABLE = "torch's own is good, and no table of this processor says that ours is faster"
