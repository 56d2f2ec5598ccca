"""What an answer is worth: to a rule, a user's function, a reward model or a judge."""
