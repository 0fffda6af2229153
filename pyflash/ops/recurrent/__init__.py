"""RNN, LSTM and GRU: layers, cells, and what runs without gradients."""
