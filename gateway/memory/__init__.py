"""Memory: finds the platform's conversation for the history that a client sends again."""
