"""The whole way on real input, without a network: text, training, conversion, experts, export, proof."""
