"""The backbones. None of them knows a slimming method by name."""
