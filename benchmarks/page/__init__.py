"""Parts of docs/results.md; benchmarks/report.py puts them together."""
