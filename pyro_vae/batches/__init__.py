"""Any source of data as minibatches."""
