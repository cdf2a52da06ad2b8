"""What is done with trained policies: fresh episodes, moving pictures, other runtimes."""
