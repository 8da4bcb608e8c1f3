"""The demo: its task (requests in plain English to JSON commands), its configuration, and its score."""
