"""Pure functions on arrays: the algebra of attention, selection, merging and lives."""
