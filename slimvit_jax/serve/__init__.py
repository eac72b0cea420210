"""A trained model behind HTTP: one set of weights at several keep rates, dynamic batches, JSON, and one page."""
