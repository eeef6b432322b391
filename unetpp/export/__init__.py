"""A depth for other programs: safetensors, torch.export, ONNX, int8, and their verification."""
