"""One forward pass and what is measured of it: accuracy, speed, multiply-adds, export."""
