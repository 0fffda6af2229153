// Packed-panel matrix products.
