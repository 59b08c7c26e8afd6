"""Pictures that a job brings, as base64 or as URLs: fetched, checked and decoded."""
