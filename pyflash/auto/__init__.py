"""What `auto` prefers where: tables of measurements (tables.py), and for each operation what holds where they are silent.

Pure functions of place, size and dtype: never measured at run time, so results do not change from run to run.
"""

SMALL = "small input: torch's own call is cheaper"  # the reason that most operations give for their smallest calls
MEASURED = "torch's own is as fast or faster here, by this processor's table"
NO_TABLE = "torch's own is good, and no table of this processor says that ours is faster"
