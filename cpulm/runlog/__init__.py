"""The run log ``metrics.jsonl``: one writer and one reader."""
