"""What was drawn, measured: metrics, the cases to measure, and reports that say which claims hold."""
