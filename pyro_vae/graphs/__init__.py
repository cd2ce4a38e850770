"""A function of tensors as a graph of tensor operations: captured, simplified, replayed."""
