"""Text2Video-Zero's studies: ablation, ControlNet guidance, DreamBooth LoRAs, editing and background smoothing."""
