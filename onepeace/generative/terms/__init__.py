"""Terms of an objective for models that write: asking.py puts a task to a batch, the others are a term each."""
