"""One file per trained model."""
