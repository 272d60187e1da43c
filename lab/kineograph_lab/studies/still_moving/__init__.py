"""Still-Moving's studies: the method against its baselines and ablations, and the motion adapter's scale."""
