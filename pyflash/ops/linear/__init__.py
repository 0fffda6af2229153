"""Matrix products: Linear, its activation and bias fused."""
