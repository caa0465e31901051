"""The derivatives of the operations across devices."""
