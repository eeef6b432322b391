"""What every wing stands on: params, whole files, typed records, exit codes. No Ray, MLflow, S3 or HTML."""
