"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch

PAIRS = (
    ("softplus_negative", "softplus"),
    ("hinge_below", "hinge_above"),
    ("minus_value", "value"),
    ("half_square_to_one", "half_square"),
    ("minus_softplus", ""),
)


def mean_terms_fwd():
    for terms in PAIRS:
        yield torch.randn(3, 7), torch.randn(5, 2, 2).mT if terms[1] else None, *terms, torch.float32


def mean_terms_bwd():
    for x, z, *terms, _ in mean_terms_fwd():
        for needs in ((True, z is not None), (False, z is not None), (True, False)):
            yield torch.randn(()), x, z, *terms, *needs


def mean_terms_second():
    for x, z, *terms, _ in mean_terms_fwd():
        ddz = None if z is None else z.sin()
        yield torch.randn(()), x.cos(), ddz, x, z, *terms
        if z is not None:
            yield torch.randn(()), None, ddz, x, z, *terms


OPERATORS = {
    "mean_terms_fwd": mean_terms_fwd,
    "mean_terms_bwd": mean_terms_bwd,
    "mean_terms_second": mean_terms_second,
}
