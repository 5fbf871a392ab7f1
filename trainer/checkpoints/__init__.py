"""Checkpoints: what one holds, where they lie, how a run resumes."""
