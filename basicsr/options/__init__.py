"""Option files: reading with line numbers, checks, JSON schema."""
