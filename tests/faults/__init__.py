"""Seeded fault schedules: the product's own code against a real Postgres and an in-process Medflex on a fake clock."""
