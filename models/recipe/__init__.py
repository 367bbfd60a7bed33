"""Training recipe of the undertone codec. Run `python -m recipe --help` inside `models/`."""
