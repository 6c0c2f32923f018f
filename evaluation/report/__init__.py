"""Trainings as pages to read: report.html and what it is made of."""
