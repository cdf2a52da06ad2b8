"""Statistics over seeds, and what became of each of them. numpy and scipy only."""
