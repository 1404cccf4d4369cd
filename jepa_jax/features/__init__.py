"""Features of whole files: videos cut into windows, encoded, pooled, stored, and turned into colours."""
