"""Element by element: activations and dropout."""
