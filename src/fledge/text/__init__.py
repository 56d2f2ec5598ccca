"""From files to tokens: documents, chats, preference pairs, tokenizer and chat template."""
