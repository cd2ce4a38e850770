"""Jobs in other processes, and what they have said there."""
