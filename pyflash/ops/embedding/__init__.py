"""Tables of rows that indices look up: embeddings, alone and in bags; and what is told of positions."""
