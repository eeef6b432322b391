"""The sections of params.yaml: every valid key and value, checked by pydantic."""
