"""A pytest plugin: a worker whose device no longer answers ends, and xdist starts another in its place.

So one illegal access is one failed test, and not every test that follows in the same process.
"""

import os

import pytest

LOST = 3  # exit status


@pytest.hookimpl(trylast=True)  # after the report is on its way
def pytest_runtest_logreport(report):
    if report.failed and report.when == "call" and "PYTEST_XDIST_WORKER" in os.environ and not answers():
        os._exit(LOST)


def answers() -> bool:
    import torch

    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except Exception:
        return False
    return True
