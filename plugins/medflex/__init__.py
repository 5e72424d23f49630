"""Shares what clinics may share of their patients' appointments with partners, from Medlock through Medflex."""
