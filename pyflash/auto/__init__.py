"""What `auto` prefers where: thresholds as data, one file an operation, each with the benchmark row that set it.

Pure functions of backend, size and dtype: never measured at run time, so results do not change from run to run.
"""

SMALL = "small input: torch's own call is cheaper"  # the reason that most operations give for their smallest calls
