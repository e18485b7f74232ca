"""What runs say: statistics over seeds, tables, figures."""
