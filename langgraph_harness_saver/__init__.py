"""A checkpoint saver for LangGraph that stores differences, not copies."""
