"""What models are worth: computations on held-out data, and reports of them."""
