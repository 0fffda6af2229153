"""What every family of operations uses: the registry of operators, backends and the choice between them, autograd, checks."""
