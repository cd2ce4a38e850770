"""Capture a function of tensors as a graph of tensor operations, simplify it, replay it."""
