"""What the triggerer runs. Importable by it, and light: pandas and pyarrow stay outside."""
