"""An app whose tasks are written in other languages: `python -m example_app`."""
