"""Asks a loaded model about pictures: conversations, prompts, answers, and where their time and memory go."""
