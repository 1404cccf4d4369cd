"""Robot data sets as people have them, one module each: their items, and a spec that makes records of them."""
