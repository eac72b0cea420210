"""What is told of runs and models: reports, tables and pictures."""
