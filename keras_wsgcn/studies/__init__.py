"""Studies: the paper's tables and Optuna searches, on one machine or many."""
