"""Turn any source of data into minibatches."""
