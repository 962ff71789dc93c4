"""What is shown of a study and of a ranking: terminal, pictures, pages."""
