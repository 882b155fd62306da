"""A worker under every fault at a low rate: nothing is lost, and nothing grows."""
