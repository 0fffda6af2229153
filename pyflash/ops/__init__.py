"""Operations: argument checks, autograd, and the choice of backend. One file an operation."""
