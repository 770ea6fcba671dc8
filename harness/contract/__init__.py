"""What the contract between the harness and a task promises, checked on any task."""
