"""What is known of a run: metrics, held-out samples, the journal and the report."""
