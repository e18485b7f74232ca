"""Experiments: grids of arms and seeds as files, and what runs them on one machine or many."""
