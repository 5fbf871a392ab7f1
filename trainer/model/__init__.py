"""Sa2VA: InternVL (vision tower, projector, language model) joined with SAM 2 through the `[SEG]` token."""
