"""Tasks in order: `align continual`. Import what you need from its modules."""
