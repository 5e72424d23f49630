"""The world outside the product, for the demo and the tests: Medlock, Medflex, Postgres, and the one-machine stack."""
