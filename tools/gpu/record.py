"""A pytest plugin: one line of JSON for each test as it ends, so that a run that is stopped has said what it did."""

import json
import os


class Recorder:
    def __init__(self, path):
        self.file = open(path, "a")

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        why = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            why = report.longrepr[2]
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash else str(report.longrepr)
        line = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 3),
            "why": why[:400],
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def pytest_collectreport(self, report):
        if report.failed:
            line = {"test": report.nodeid, "outcome": "failed", "seconds": 0.0, "why": str(report.longrepr)[-400:]}
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()


def pytest_configure(config):
    path = os.environ.get("PYFLASH_RECORD")
    if path and not hasattr(config, "workerinput"):  # of several workers only the one that hears them all
        config.pluginmanager.register(Recorder(path), "pyflash-recorder")
