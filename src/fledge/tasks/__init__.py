"""Families of questions with programmatic scores; the score of an answer is also its reward."""
