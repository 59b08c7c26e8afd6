"""The algebra of LoRAs: what the tensors of each kind change in the weight of a layer."""
