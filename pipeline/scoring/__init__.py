"""Batch inference: the predictions of many images as a folder of Parquet files."""
