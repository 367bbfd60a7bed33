"""Training recipe of the undertone codec. Run `python -m undertone_recipe --help` inside `models/`."""
