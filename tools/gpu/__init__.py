"""`make gpu`: tests, benchmarks and tuning on a machine with a GPU, in one command that keeps to a time. See docs/gpu.md."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "gpu"
