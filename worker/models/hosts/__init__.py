"""The sites that model references point to: CivitAI, Hugging Face, and any https URL."""
