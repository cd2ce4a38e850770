"""Ask about data that the model made itself, where the latents behind them are known."""
