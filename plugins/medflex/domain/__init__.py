"""The rules, as pure functions over DataFrames: no Airflow, no HTTP, no SQL, no clock.

The instant that rules are judged at is always an argument. Frames and columns are those of ``docs`` and of the queries
in ``include/sql/medlock``; rule numbers (R1, R2 …) are those of the domain description.
"""
