"""Tools for whoever writes a child: check it, run one task in it, measure it.

Nothing here is imported by a worker, and only `celery_linepool.cli` leads here.
"""
