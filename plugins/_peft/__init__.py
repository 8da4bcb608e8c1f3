"""What the adapters that PEFT implements share (`lora`, `dora`, `oft`, `peft`); no plugin of its own."""
