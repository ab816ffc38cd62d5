"""What needs other people's software: mlx-delta beside mlx-lm and llama.cpp. The rest is mlx_delta.bench."""
