"""What bitsandbytes' methods share: weights stored in fewer bits, optimizers with 8-bit state; no plugin of its own."""
