"""Model folders as people have them on disk: read strictly, written completely or not at all."""
