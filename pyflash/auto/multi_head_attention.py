"""Multi-head attention and encoder layers as a whole. Provisional: benchmarks transformer, the rows "tiny"."""

MIN_FLOPS = {"cpu": 1 << 22}  # below it Python's share of our composition outweighs what the kernels gain


def prefers_torch(device: str, elements: int, embed_dim: int, keys: int) -> bool:
    """elements: of the query. Four projections and two products with the keys."""
    return 2 * elements * (4 * embed_dim + 2 * keys) < MIN_FLOPS.get(device, 0)
