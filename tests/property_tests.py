"""hypothesis where it is installed; without it the tests that draw their cases are skipped, and the rest of their file runs."""

import pytest

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError:

    def given(*_, **__):
        def skipped(test):
            @pytest.mark.skip(reason="hypothesis is not installed")
            def without_arguments():
                pass

            without_arguments.__name__ = test.__name__
            return without_arguments

        return skipped

    def settings(*_, **__):
        return lambda test: test

    class _Strategies:
        def __getattr__(self, name):
            return lambda *_, **__: self

    st = _Strategies()

__all__ = ["given", "settings", "st"]
