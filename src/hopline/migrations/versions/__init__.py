"""One file per version of the engine's tables. A file that was released is never changed."""
