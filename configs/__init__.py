"""What to run: values and LazyCalls."""
