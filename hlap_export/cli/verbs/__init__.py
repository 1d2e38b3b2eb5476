"""One module per verb: its flags, what it calls, what it prints."""
