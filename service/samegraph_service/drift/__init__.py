"""Drift: what callers send, counted over the bins of the training baseline and compared with it. Docs: docs/drift.md."""
