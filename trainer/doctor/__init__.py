"""What people check by hand before a run."""
