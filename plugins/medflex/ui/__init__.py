"""The pages inside the Airflow UI: read from the ledger and from Medlock's clinics, never from its patients."""
