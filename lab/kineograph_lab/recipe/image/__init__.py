"""Stages of the image models: VAE, text encoder, CLIP, U-Net, ControlNets and editing U-Net.

Each file holds one network's batches, losses, report and training function.
"""
