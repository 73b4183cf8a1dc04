"""Capture: a sample of the raw requests with their answers, kept in Parquet files to be looked at and replayed."""
