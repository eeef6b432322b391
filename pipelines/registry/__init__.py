"""Everything MLflow: runs, versions, aliases, promotion, lineage, reports by name."""
