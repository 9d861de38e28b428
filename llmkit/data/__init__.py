"""From files, folders, Hub ids and the bundled data to documents, splits and packed tokens."""
