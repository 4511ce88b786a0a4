"""Label Studio: people see only this. Projects, tasks out, annotations back."""
