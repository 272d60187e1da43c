"""VideoElevator's studies: an image model with a video model, and a personalised image model with it."""
