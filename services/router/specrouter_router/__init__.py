"""The router: drives the levels of a family and answers clients."""
