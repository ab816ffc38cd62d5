// Where decoding ends and prefill begins: the one number on which ops, kernels and the network have to agree.
#pragma once

namespace mlx_delta {

// Up to this many tokens of a sequence are decoded: their rows of a product add in one order whatever their number, and
// the gated delta rule goes token by token. More are a prompt, which takes tiles and chunks, or MLX's kernels on a GPU.
inline constexpr int kDecodeTokens = 16;

}  // namespace mlx_delta
