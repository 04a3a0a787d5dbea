"""What the paper claims: each claim as one number, and the table of all of them."""

from apr.results.claims.table import make_claims

__all__ = ["make_claims"]
