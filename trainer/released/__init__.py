"""Released folders: models as people have them on disk, read strictly and written whole."""
