"""VideoCrafter1's studies: text to video, image to video, and joint training on images and videos."""
