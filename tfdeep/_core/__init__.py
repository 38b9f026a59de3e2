"""Pure helpers that every part of tfdeep may use: no files, no change of a model."""
